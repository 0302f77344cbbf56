"""The meters that are files of Linux: RAPL, INA2xx and the Jetson's INA3221, on trees like those of real machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgelm.errors import MeterError
from edgelm.meters import InaMeter, JetsonMeter, RaplMeter
from edgelm.meters.hwmon import find_ina, power_step_w
from edgelm.meters.jetson import find_rails, input_rail
from edgelm.meters.rapl import counter_step, find_packages

# A server with two sockets and a platform counter. The ranges are those of a Xeon; a package holds its zones.
RAPL = {
    "intel-rapl:0/name": "package-0",
    "intel-rapl:0/max_energy_range_uj": "262143328850",
    "intel-rapl:0/energy_uj": "262143000000",
    "intel-rapl:0:0/name": "dram",
    "intel-rapl:0:0/max_energy_range_uj": "65712999613",
    "intel-rapl:0:0/energy_uj": "7",
    "intel-rapl:1/name": "package-1",
    "intel-rapl:1/max_energy_range_uj": "262143328850",
    "intel-rapl:1/energy_uj": "1000000",
    "intel-rapl:2/name": "psys",
    "intel-rapl:2/max_energy_range_uj": "262143328850",
    "intel-rapl:2/energy_uj": "5",
    "intel-rapl/enabled": "1",
}


def tree(root: Path, folder: str, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_rapl_adds_the_packages_and_nothing_inside_them(tmp_path: Path) -> None:
    zones = find_packages(tree(tmp_path, "sys/class/powercap", RAPL))
    assert [zone.name for zone in zones] == ["package-0", "package-1"]
    meter = RaplMeter(zones, now=lambda: 5.0)
    assert (meter.facts.name, meter.facts.scope, meter.facts.quantity) == (
        "RAPL package-0 + package-1",
        "package",
        "joules",
    )
    assert meter.facts.range_j == pytest.approx(262143.32885)
    meter.open()
    assert meter.read().value == 0.0
    tree(tmp_path, "sys/class/powercap", {"intel-rapl:0/energy_uj": "671150", "intel-rapl:1/energy_uj": "4000000"})
    reading = meter.read()
    # The first counter went on to its range, 0.328850 J, and from 0 to 0.671150 J: 1 J. The second went on by 3 J.
    assert reading.value == pytest.approx(4.0, abs=1e-9)
    assert reading.time_s == 5.0


def test_a_counter_step() -> None:
    assert counter_step(5, 9, 100) == 4
    assert counter_step(95, 3, 100) == 8


def test_rapl_that_is_not_there_or_not_open(tmp_path: Path) -> None:
    assert find_packages(tmp_path) == ()
    meter = RaplMeter(find_packages(tree(tmp_path, "sys/class/powercap", RAPL)))
    with pytest.raises(MeterError, match=r"open\(\) first"):
        meter.read()
    tree(tmp_path, "sys/class/powercap", {"intel-rapl:0/energy_uj": ""})
    with pytest.raises(MeterError, match="no number of µJ"):
        meter.open()


# A Raspberry Pi with an INA226 of 2 mΩ and an INA219 of 100 mΩ on I2C, beside the sensors that it has itself.
HWMON = {
    "hwmon0/name": "cpu_thermal",
    "hwmon0/temp1_input": "51121",
    "hwmon1/name": "rpi_volt",
    "hwmon1/in0_lcrit_alarm": "0",
    "hwmon10/name": "ina226",
    "hwmon10/in0_input": "3",
    "hwmon10/in1_input": "5106",
    "hwmon10/curr1_input": "1296",
    "hwmon10/power1_input": "6625000",
    "hwmon10/shunt_resistor": "2000",
    "hwmon10/update_interval": "35",
    "hwmon2/name": "ina219",
    "hwmon2/in0_input": "62",
    "hwmon2/in1_input": "5092",
    "hwmon2/curr1_input": "620",
    "hwmon2/shunt_resistor": "100000",
}


def test_ina_power_in_watts(tmp_path: Path) -> None:
    ina219, ina226 = find_ina(tree(tmp_path, "sys/class/hwmon", HWMON))
    assert (ina219.chip, ina226.chip, ina226.has_power, ina219.has_power) == ("ina219", "ina226", True, False)
    meter = InaMeter(ina226, now=lambda: 1.0)
    meter.open()
    assert meter.read().value == pytest.approx(6.625)
    assert meter.facts.name == "ina226 (hwmon10, shunt 2 mΩ)"
    assert meter.facts.rate_hz == pytest.approx(1 / 0.035)
    # 25 x 2.5 µV over 2 mΩ, which is more than the 25 mW of old drivers.
    assert meter.facts.resolution == pytest.approx(25 * 2.5e-6 / 2e-3)
    # Without a power file: 5.092 V x 0.62 A. 20 x 10 µV over 100 mΩ is 2 mW; old drivers have 20 mW.
    assert InaMeter(ina219).read().value == pytest.approx(5.092 * 0.62)
    assert power_step_w(ina219) == 0.02


def test_an_ina_that_fails(tmp_path: Path) -> None:
    sensor = find_ina(tree(tmp_path, "sys/class/hwmon", HWMON))[1]
    (sensor.folder / "power1_input").unlink()
    with pytest.raises(MeterError, match="driver loaded"):
        InaMeter(sensor).open()
    tree(tmp_path, "sys/class/hwmon", {"hwmon10/power1_input": "?"})
    with pytest.raises(MeterError, match="no whole number"):
        InaMeter(sensor).read()


# A Jetson Orin Nano with JetPack 6, and a Jetson Nano with JetPack 4.
ORIN = {
    "hwmon1/name": "ina3221",
    "hwmon1/in1_label": "VDD_IN",
    "hwmon1/in1_input": "4976",
    "hwmon1/curr1_input": "1096",
    "hwmon1/shunt1_resistor": "5000",
    "hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "hwmon1/in2_input": "4976",
    "hwmon1/curr2_input": "192",
    "hwmon1/in3_label": "VDD_SOC",
    "hwmon1/in3_input": "4968",
    "hwmon1/curr3_input": "296",
    "hwmon1/in7_label": "sum of shunt voltages",
}
NANO = {
    "6-0040/iio:device0/rail_name_0": "POM_5V_IN",
    "6-0040/iio:device0/in_power0_input": "2183",
    "6-0040/iio:device0/rail_name_1": "POM_5V_GPU",
    "6-0040/iio:device0/in_power1_input": "0",
    "6-0040/iio:device0/rail_name_2": "NC",
}


def test_a_jetson_is_read_at_its_input(tmp_path: Path) -> None:
    rails = find_rails(tree(tmp_path, "sys/class/hwmon", ORIN))
    assert [rail.name for rail in rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    meter = JetsonMeter(input_rail(rails))
    meter.open()
    assert meter.read().value == pytest.approx(4.976 * 1.096)
    assert (meter.facts.sensor, meter.facts.scope) == ("ina3221", "board")
    # 40 µV over 5 mΩ are 8 mA, at 20 V at most; 8 mV at 5 A at most.
    assert meter.facts.resolution == pytest.approx(0.008 * 20 + 0.008 * 5)


def test_an_old_jetson_through_iio(tmp_path: Path) -> None:
    rails = find_rails(tree(tmp_path, "sys/bus/i2c/drivers/ina3221x", NANO))
    assert [rail.name for rail in rails] == ["POM_5V_IN", "POM_5V_GPU"]
    assert JetsonMeter(input_rail(rails)).read().value == pytest.approx(2.183)


def test_a_jetson_without_an_input_rail_is_not_added_up(tmp_path: Path) -> None:
    files = {"hwmon1/name": "ina3221", "hwmon1/in1_label": "VDD_GPU_SOC", "hwmon1/in2_label": "VDD_CPU_CV"}
    with pytest.raises(MeterError, match="VDD_GPU_SOC, VDD_CPU_CV feeds the whole board"):
        input_rail(find_rails(tree(tmp_path, "sys/class/hwmon", files)))
