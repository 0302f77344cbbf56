"""What is found on machines of every kind, and what is said of what is not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from edgelm.errors import MeterError
from edgelm.meters import Found, find_meters
from edgelm.meters.readers import read_text, run_program

RAPL_FILES = {"name": "package-0", "max_energy_range_uj": "262143328850", "energy_uj": "5"}
PI = "VDD_CORE_A current(7)=0.9A\nVDD_CORE_V volt(15)=0.7V\n"
PHONE = "  USB powered: false\n  status: 3\n  voltage: 4200\n"


def find(root: Path, programs: Mapping[str, str] | None = None, error: str = "failed") -> dict[str, Found]:
    """Meters by the first word of their names; `programs` are the installed ones, with what they print."""
    installed = programs or {}

    def run(arguments: Sequence[str]) -> str:
        for command, printed in installed.items():
            if " ".join(arguments).endswith(command):
                return printed
        raise MeterError(error)

    def which(name: str) -> str | None:
        return name if any(command.startswith(name) or name == "adb" for command in installed) else None

    found = find_meters(root=root, run=run, which=which)
    return {meter.name.split()[0] if "Android" not in meter.name else "Android": meter for meter in found}


def write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_a_machine_with_nothing(tmp_path: Path) -> None:
    found = find(tmp_path)
    assert {meter.state for meter in found.values()} == {"missing"}
    assert set(found) == {"RAPL", "INA2xx", "INA3221", "Raspberry", "Android", "external"}
    assert all(meter.meter is None and meter.why for meter in found.values())


def test_every_sysfs_meter(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/powercap/intel-rapl:0", RAPL_FILES)
    write(tmp_path / "sys/class/hwmon/hwmon0", {"name": "ina260", "power1_input": "3210000"})
    jetson = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1000"}
    write(tmp_path / "sys/class/hwmon/hwmon1", jetson)
    found = find(tmp_path)
    assert [found[name].state for name in ("RAPL", "ina260", "ina3221")] == ["usable"] * 3
    ina = found["ina260"].meter
    assert ina is not None
    ina.open()
    assert ina.read().value == pytest.approx(3.21)
    assert "not seen" in found["RAPL"].why
    assert found["RAPL"].fix is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rapl_for_root_alone_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    write(folder, RAPL_FILES)
    (folder / "energy_uj").chmod(0)
    assert find(tmp_path)["RAPL"].state == "denied"


def test_rapl_for_root_alone(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/powercap/intel-rapl:0", RAPL_FILES)

    def read(path: Path) -> str:
        if path.name != "energy_uj":
            return read_text(path)
        try:
            raise PermissionError(13, "Permission denied")
        except PermissionError as error:
            raise MeterError(f"{path} may not be read by this user.") from error

    rapl = find_meters(root=tmp_path, read=read, which=lambda name: None)[0]
    assert (rapl.state, rapl.meter) == ("denied", None)
    assert rapl.fix is not None
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in rapl.fix


def test_a_jetson_without_its_input(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/hwmon/hwmon1", {"name": "ina3221", "in1_label": "VDD_SOC"})
    found = find(tmp_path)["INA3221"]
    assert found.state == "missing"
    assert "external meter" in found.why


def test_a_raspberry_pi(tmp_path: Path) -> None:
    assert find(tmp_path, {"vcgencmd pmic_read_adc": PI})["Raspberry"].state == "usable"
    older = find(tmp_path, {"vcgencmd pmic_read_adc": 'error=1 error_msg="Command not registered"'})["Raspberry"]
    assert (older.state, older.fix) == ("missing", None)
    denied = find(
        tmp_path, {"vcgencmd": ""}, error="'vcgencmd pmic_read_adc' failed (Can't open device file: /dev/vcio)"
    )
    assert denied["Raspberry"].state == "denied"
    assert denied["Raspberry"].fix == "sudo usermod -aG video $USER, then log in anew"


def test_a_phone(tmp_path: Path) -> None:
    battery = "/battery/current_now /sys/class/power_supply/battery/voltage_now"
    answers = {"dumpsys battery": PHONE, battery: "-350000\n4200000\n"}
    listed = "List of devices attached\n192.0.2.7:5555\tdevice\n\n"
    assert find(tmp_path, {"adb devices": listed, **answers})["Android"].state == "usable"
    plugged = {
        "adb devices": listed,
        **answers,
        "dumpsys battery": PHONE.replace("USB powered: false", "USB powered: true"),
    }
    assert "Wi-Fi" in find(tmp_path, plugged)["Android"].why
    unknown = find(tmp_path, {"adb devices": listed.replace("\tdevice", "\tunauthorized")})["Android"]
    assert (unknown.state, unknown.fix) == ("denied", "confirm this computer's key on the device")
    none = find(tmp_path, {"adb devices": "List of devices attached\n\n"})["Android"]
    assert (none.state, none.why) == ("missing", "adb lists no device")
    # On the device itself nothing goes in between.
    write(tmp_path / "system/bin", {"getprop": ""})
    assert find(tmp_path, answers)["Android"].state == "usable"


def test_the_readers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("5\n")
    assert read_text(tmp_path / "file") == "5"
    with pytest.raises(MeterError, match="No such file or directory"):
        read_text(tmp_path / "none")
    assert run_program(("echo", "hello")) == "hello\n"
    with pytest.raises(MeterError, match="'no-such-program' is not installed"):
        run_program(("no-such-program",))
    with pytest.raises(MeterError, match=r"failed with status 3 \(no\)"):
        run_program(("sh", "-c", "echo no >&2; exit 3"))
