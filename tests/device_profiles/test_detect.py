import json
from dataclasses import replace

import pytest
from edgelm_device_profiles import DeviceFacts, detect, load, match, parse_android_properties, read_device_facts
from hypothesis import given
from hypothesis import strategies as st

GETPROP = """[ro.build.fingerprint]: [google/shiba/shiba:14/UD1A.231105.004/11010374:user/release-keys]
[ro.product.device]: [shiba]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 8]
[ro.product.system.device]: [generic]
"""


@pytest.fixture
def tree(tmp_path):
    def write(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode())
        return tmp_path

    return lambda files: write(**files)


USB = "sys/bus/usb/devices"
CORAL_STICK = {f"{USB}/2-1/idVendor": "18d1\n", f"{USB}/2-1/idProduct": "9302\n", f"{USB}/2-1:1.0/uevent": "x"}


@pytest.mark.parametrize(
    ("model", "profile"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4b"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "raspberry-pi-zero-2-w"),
        ("Freescale i.MX8MQ Phanbell", "coral-dev-board"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson-orin-nano"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("Raspberry Pi 500 Rev 1.0", None),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", None),
        ("Radxa ROCK 5B", None),
    ],
)
def test_device_tree(tree, model, profile):
    found = detect(tree({"proc/device-tree/model": model + "\0"}), architecture="aarch64")
    assert found.profile == profile
    assert not found.generic
    assert any(model in sentence for sentence in found.evidence)


def test_a_stick_is_attached_to_its_host(tree):
    root = tree({"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", **CORAL_STICK})
    found = detect(root, architecture="aarch64")
    assert found.profile == "raspberry-pi-5"
    assert found.attached == ("coral-usb",)
    assert found.evidence == (
        "coral-usb: USB id '18d1:9302'",
        "raspberry-pi-5: device-tree model 'Raspberry Pi 5 Model B Rev 1.0'",
    )
    assert found.warnings == ()


def test_a_stick_that_has_no_firmware_yet(tree):
    root = tree({f"{USB}/1-2/idVendor": "1A6E\n", f"{USB}/1-2/idProduct": "089A\n"})
    found = detect(root, architecture="x86_64")
    assert (found.profile, found.generic, found.attached) == ("x86-64", True, ("coral-usb",))


def test_a_container_on_a_raspberry_pi_hides_the_device_tree(tree):
    root = tree({"proc/cpuinfo": "processor\t: 0\nModel\t\t: Raspberry Pi 4 Model B Rev 1.1\n"})
    assert detect(root, architecture="aarch64").profile == "raspberry-pi-4b"


def test_android_through_getprop(tmp_path):
    found = detect(tmp_path, architecture="aarch64", getprop=lambda: GETPROP)
    assert found.profile == "pixel-8"
    assert found.evidence == ("pixel-8: Android device 'shiba'", "pixel-8: Android model 'Pixel 8'")


def test_android_through_build_props(tree):
    root = tree(
        {
            "system/build.prop": "# system\nro.product.system.device=qssi\n",
            "vendor/build.prop": "ro.product.vendor.device=e1q\nro.product.vendor.model=SM-S921U1\n",
        }
    )
    facts = read_device_facts(root, architecture="aarch64")
    assert facts.android_devices == ("qssi", "e1q")
    assert match(facts).profile == "galaxy-s24"


def test_build_props_are_read_where_getprop_prints_nothing(tree):
    root = tree({"vendor/build.prop": "ro.product.vendor.device=shiba\n"})
    assert detect(root, architecture="aarch64", getprop=lambda: "").profile == "pixel-8"


@pytest.mark.parametrize("model", ["SM-S921B", "SM-S921N", "Pixel 8 Pro", "Pixel 8a"])
def test_a_sibling_is_not_the_phone(model):
    assert match(DeviceFacts(architecture="aarch64", android_models=(model,))).profile is None


def test_only_the_generic_profile_fits(tmp_path):
    found = detect(tmp_path, architecture="x86_64")
    assert (found.profile, found.generic) == ("x86-64", True)
    assert found.evidence == ("x86-64: the architecture is 'x86_64', and nothing names the device itself",)


def test_nothing_fits(tmp_path):
    found = detect(tmp_path, architecture="riscv64")
    assert (found.profile, found.generic, found.attached) == (None, False, ())
    assert found.evidence == ("no profile fits: architecture 'riscv64'",)


def test_the_edge_tpu_of_the_dev_board(tree):
    board = {"proc/device-tree/model": "Google i.MX8MQ Phanbell\0"}
    without = detect(tree(board), architecture="aarch64")
    assert without.warnings == ("coral-dev-board should have /dev/apex_*, which is absent: its driver is not loaded.",)
    found = detect(tree({**board, "dev/apex_0": ""}), architecture="aarch64")
    assert found.warnings == ()
    assert "coral-dev-board: device node '/dev/apex_0'" in found.evidence


def test_an_edge_tpu_on_pcie_that_no_profile_describes(tree):
    found = detect(tree({"dev/apex_0": "", "dev/apex_1": ""}), architecture="x86_64")
    assert found.profile == "x86-64"
    assert found.warnings == (
        "There is an Edge TPU on PCIe (/dev/apex_0, /dev/apex_1) that no profile found here describes.",
    )


def test_several_profiles_fit():
    pi = load("raspberry-pi-5")
    found = match(
        DeviceFacts(architecture="aarch64", device_tree_model="Raspberry Pi 5 Model B Rev 1.0"),
        [replace(pi, name="my-pi"), pi],
    )
    assert found.profile == "my-pi"
    assert found.warnings == ("Several profiles fit: my-pi, raspberry-pi-5. The first is taken.",)


def test_json(tmp_path):
    table = detect(tmp_path, architecture="x86_64").to_dict()
    assert json.loads(json.dumps(table)) == table
    assert set(table) == {"profile", "generic", "attached", "evidence", "warnings"}


def test_this_machine():
    assert detect().evidence


def test_properties_with_brackets_and_equal_signs():
    assert parse_android_properties("[a]: [b]c]\n[empty]: []\nx=y=z\n# note=1\n\n") == {
        "a": "b]c",
        "empty": "",
        "x": "y=z",
    }


names = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="._"), min_size=1)
values = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="._- "), min_size=1).map(
    str.strip
)


@given(st.dictionaries(names, values))
def test_both_forms_of_properties_read_the_same(properties):
    getprop = "\n".join(f"[{key}]: [{value}]" for key, value in properties.items())
    build_prop = "\n".join(f"{key}={value}" for key, value in properties.items())
    assert parse_android_properties(getprop) == parse_android_properties(build_prop) == properties


@given(
    st.builds(
        DeviceFacts,
        architecture=st.text(),
        device_tree_model=st.none() | st.text(),
        android_models=st.lists(st.text()).map(tuple),
        usb_ids=st.lists(st.text()).map(tuple),
        device_nodes=st.lists(st.text()).map(tuple),
    )
)
def test_every_answer_has_evidence(facts):
    assert match(facts).evidence
