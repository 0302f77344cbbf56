import json
from dataclasses import fields, is_dataclass

import pytest
from edgelm_device_profiles import Fact, load, names, parse_profile

from edgelm.errors import ProfileError

SHIPPED = (
    "coral-dev-board",
    "coral-usb",
    "galaxy-s24",
    "jetson-orin-nano",
    "pixel-8",
    "raspberry-pi-4b",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
    "x86-64",
)


def walk_facts(value, place=""):
    if isinstance(value, Fact):
        yield place, value
    elif is_dataclass(value):
        for item in fields(value):
            yield from walk_facts(getattr(value, item.name), f"{place}.{item.name}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from walk_facts(item, f"{place}[{index}]")


def test_the_shipped_profiles():
    assert names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_fact_has_unit_source_and_kind(name):
    profile = load(name)
    assert profile.name == name
    facts = list(walk_facts(profile))
    assert len(facts) >= 5
    for place, fact in facts:
        assert fact.unit, place
        assert fact.kind in ("measured", "vendor", "derived"), place
        assert len(fact.source) > 8, place
        assert not fact.source.startswith("/"), place


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_can_be_detected_and_run(name):
    profile = load(name)
    assert any(rule for rule in walk_facts(profile.match))
    assert profile.software.runtimes is not None
    assert profile.software.targets is not None
    if profile.category in ("board", "phone"):
        assert profile.cpu.architecture is not None
        assert profile.memory.sizes_bytes is not None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_survives_json(name):
    profile = load(name)
    assert parse_profile(json.loads(json.dumps(profile.to_dict(), allow_nan=False)), "json") == profile


def test_derived_peaks_agree_with_cores_and_clock():
    for name in SHIPPED:
        cpu = load(name).cpu
        if cpu.peak_fp32_flops_per_s and cpu.cores and cpu.clock_max_hz:
            per_cycle = cpu.peak_fp32_flops_per_s.value / cpu.cores.value / cpu.clock_max_hz.value
            # NEON pipes are 64 or 128 bits wide and one or two: 4, 8 or 16 FLOP a cycle. 1e-9 is for the division.
            assert min(abs(per_cycle - flops) for flops in (4, 8, 16)) < 1e-9, name


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(ProfileError) as caught:
        load("rasberry-pi-5")
    assert str(caught.value) == (
        f"No device profile is called 'rasberry-pi-5'. Did you mean 'raspberry-pi-5'? Known: {', '.join(SHIPPED)}."
    )


def test_a_users_own_file(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text('name = "my-board"\ntitle = "My board"\ncategory = "board"\n')
    assert load(path).name == "my-board"
    assert load(str(path)).title == "My board"


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "board.toml"
    for name in ("first", "second"):
        path.write_text(f'name = "{name}"\ntitle = "My board"\ncategory = "board"\n')
        assert load(path).name == name


def test_a_missing_file(tmp_path):
    with pytest.raises(ProfileError, match=r"nowhere\.toml' does not exist. Give a path, or one of: coral-dev-board, "):
        load(tmp_path / "nowhere.toml")


def test_a_folder_is_no_profile(tmp_path):
    with pytest.raises(ProfileError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml(tmp_path, content):
    path = tmp_path / "board.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"board\.toml is not a valid TOML file: "):
        load(path)
