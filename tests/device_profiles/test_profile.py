import copy
import json
import tomllib

import pytest
from edgelm_device_profiles import parse_profile
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import ProfileError

GOOD = """
name = "my-board"
title = "My board"
category = "board"

[cpu]
cores = { value = 4, unit = "count", source = "its data sheet", kind = "vendor" }
clock_max_hz = { value = 1_800_000_000, unit = "Hz", source = "its data sheet", kind = "vendor" }
isa = { value = ["neon", "dotprod"], unit = "text", source = "its core's manual", kind = "derived", note = "assumed" }

[[accelerators]]
name = "NPU"
type = "npu"
peak_int8_ops_per_s = { value = 6e12, unit = "OP/s", source = "its data sheet", kind = "vendor" }

[[notes]]
value = "Needs a fan."
unit = "text"
source = "its data sheet"
kind = "vendor"
"""


def table():
    return tomllib.loads(GOOD)


def test_a_fact_has_its_value_unit_source_and_kind():
    profile = parse_profile(table(), "board.toml")
    assert profile.cpu.cores.value == 4
    assert profile.cpu.cores.unit == "count"
    assert profile.cpu.cores.source == "its data sheet"
    assert profile.cpu.cores.kind == "vendor"
    assert profile.cpu.cores.note is None
    assert profile.cpu.isa.value == ("neon", "dotprod")
    assert profile.cpu.isa.note == "assumed"
    assert profile.accelerators[0].peak_int8_ops_per_s.value == 6e12
    assert profile.notes[0].value == "Needs a fan."


def test_a_whole_number_is_a_number():
    assert type(parse_profile(table(), "board.toml").cpu.clock_max_hz.value) is float


def test_what_is_not_known_is_none():
    profile = parse_profile(table(), "board.toml")
    assert profile.cpu.description is None
    assert profile.power.idle_w is None
    assert profile.energy.sensor is None


def test_json_and_back():
    profile = parse_profile(table(), "board.toml")
    text = json.dumps(profile.to_dict(), allow_nan=False)
    assert parse_profile(json.loads(text), "board.json") == profile
    assert json.loads(text)["power"]["idle_w"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(cpus={}), "board.toml: No key of a profile is called 'cpus'. Did you mean 'cpu'?"),
        (lambda t: t["cpu"].update(coers={}), "board.toml: cpu: No fact is called 'coers'. Did you mean 'cores'?"),
        (lambda t: t["cpu"]["cores"].pop("unit"), "board.toml: cpu.cores has no unit. A fact is a table with"),
        (lambda t: t["cpu"]["cores"].pop("source"), "board.toml: cpu.cores has no source."),
        (lambda t: t["cpu"]["cores"].pop("kind"), "board.toml: cpu.cores has no kind."),
        (lambda t: t["cpu"]["cores"].pop("value"), "board.toml: cpu.cores has no value."),
        (lambda t: t["cpu"]["cores"].update(sorce="x"), "No key of a fact is called 'sorce'. Did you mean 'source'?"),
        (lambda t: t["cpu"]["cores"].update(kind="guess"), "No kind of fact is called 'guess'. Known: derived, measur"),
        (lambda t: t["cpu"]["cores"].update(source=" "), "cpu.cores: source must be a text that is not empty"),
        (lambda t: t["cpu"]["clock_max_hz"].update(unit="MHz"), "clock_max_hz is in 'MHz', and must be in 'Hz'. Conv"),
        (lambda t: t["cpu"].update(cores=4), "cpu.cores is a bare int. A fact is a table with value, unit, source"),
        (lambda t: t["cpu"]["cores"].update(value=0), "cpu.cores is 0. Numbers are above 0; leave out what is not kn"),
        (lambda t: t["cpu"]["cores"].update(value=4.5), "cpu.cores must be a whole number, and is 4.5."),
        (lambda t: t["cpu"]["cores"].update(value=True), "cpu.cores must be a number, and is True."),
        (lambda t: t["cpu"]["cores"].update(value="4"), "cpu.cores must be a number, and is '4'."),
        (lambda t: t["cpu"]["clock_max_hz"].update(value=float("nan")), "clock_max_hz must be a number, and is nan."),
        (lambda t: t["cpu"]["isa"].update(value=["noen"]), "cpu.isa: No value is called 'noen'. Did you mean 'neon'?"),
        (lambda t: t["cpu"]["isa"].update(value="neon"), "cpu.isa must be a list of one or more texts, and is 'neon'"),
        (lambda t: t["cpu"]["isa"].update(value=[]), "cpu.isa must be a list of one or more texts, and is []."),
        (lambda t: t.update(cpu=3), "board.toml: cpu must be a table of facts, and is 3."),
        (lambda t: t.update(notes={}), "board.toml: notes must be a list of tables ([[notes]] in TOML), and is {}."),
        (lambda t: t.pop("title"), "board.toml has no title, which must be a text that is not empty."),
        (lambda t: t.update(category="bord"), "board.toml: No category is called 'bord'. Did you mean 'board'?"),
        (lambda t: t.update(name="My Board"), "name is 'My Board', and may hold only a-z, 0-9 and single hyphens"),
        (lambda t: t["accelerators"][0].pop("name"), "board.toml: accelerators[0] has no name"),
        (lambda t: t["accelerators"][0].update(type="tpu"), "accelerators[0]: No type is called 'tpu'."),
        (lambda t: t["accelerators"].append("GPU"), "accelerators[1] must be a table of facts, and is 'GPU'."),
    ],
)
def test_refusals_name_the_place_and_the_remedy(change, message):
    changed = copy.deepcopy(table())
    change(changed)
    with pytest.raises(ProfileError) as caught:
        parse_profile(changed, "board.toml")
    assert message in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from(["cpu", "power", "accelerators", "notes", "name", "match"]), value=json_values)
def test_any_value_is_taken_or_refused_with_a_profile_error(key, value):
    changed = table() | {key: value}
    try:
        profile = parse_profile(changed, "board.toml")
    except ProfileError:
        return
    assert parse_profile(profile.to_dict(), "again") == profile
