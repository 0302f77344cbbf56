"""Power monitors of the INA2xx family through Linux's hwmon: INA219, INA220, INA226, INA230, INA231, INA260.

``power1_input`` is in µW, ``in1_input`` (the supply's voltage) in mV, ``curr1_input`` in mA. All but the INA260 measure the
drop over a shunt: a ``shunt_resistor`` that is not the one on the board scales every figure, and the driver's default of
10 mΩ is only a guess.
Source: https://docs.kernel.org/hwmon/ina2xx.html, and the chips' data sheets at ti.com.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Reading
from edgelm.meters.readers import Clock, ReadText, clock, read_text, timed

__all__ = ["HWMON", "InaMeter", "InaSensor", "find_ina", "parse_milli", "power_step_w", "sensor_folders"]

HWMON = Path("sys/class/hwmon")


@dataclass(frozen=True)
class _Chip:
    """A chip, by its data sheet: the step of its power register over a 1 Ω shunt, and its slowest conversion."""

    step_w_ohm: float
    driver_step_w: float
    conversion_s: float


# Step of the current (10 µV or 2.5 µV over the shunt) times 20 or 25, which is what the chip multiplies it with. Drivers
# before Linux 4.16 set the current's step to 1 mA whatever the shunt: `driver_step_w`, and the larger of both holds.
# Conversions as the driver sets them up: 12 bit with 128 averages in all, 16 averages of 2.2 ms; the INA260 has its
# shunt inside and steps of 10 mW.
_INA219 = _Chip(200e-6, 20e-3, 0.0681)
_INA226 = _Chip(62.5e-6, 25e-3, 0.0352)
_CHIPS = {
    "ina219": _INA219,
    "ina220": _INA219,
    "ina226": _INA226,
    "ina230": _INA226,
    "ina231": _INA226,
    "ina260": _Chip(0.0, 10e-3, 0.0352),
}


@dataclass(frozen=True)
class InaSensor:
    """A power monitor in sysfs.

    Attributes:
        folder: Its hwmon folder.
        chip: Such as ``ina226``.
        has_power: Whether there is a ``power1_input``; voltage times current otherwise.
        shunt_ohm: What the driver takes the shunt to be; None where the chip has its own.
        conversion_s: How long it takes for one value.
    """

    folder: Path
    chip: str
    has_power: bool
    shunt_ohm: float | None
    conversion_s: float


def parse_milli(text: str, what: str) -> float:
    """Return the number of a hwmon file, a whole one in milli- or micro-units.

    Raises:
        MeterError: It is none.
    """
    try:
        return float(int(text))
    except ValueError as error:
        raise MeterError(f"{what} reads {text!r}, which is no whole number.") from error


def power_step_w(sensor: InaSensor) -> float:
    """Return the smallest step in power that a monitor can show, in watts."""
    chip = _CHIPS[sensor.chip]
    shunt_ohm = sensor.shunt_ohm
    return max(chip.driver_step_w, chip.step_w_ohm / shunt_ohm if shunt_ohm else 0.0)


def sensor_folders(root: Path, read: ReadText = read_text) -> list[tuple[Path, str]]:
    """Return hwmon's folders with the name of each, in their order; a folder without a name is passed over."""
    if not (root / HWMON).is_dir():
        return []
    folders = [folder for folder in (root / HWMON).iterdir() if folder.name.removeprefix("hwmon").isdigit()]
    ordered = sorted(folders, key=lambda item: int(item.name.removeprefix("hwmon")))
    return [(folder, read(folder / "name")) for folder in ordered if (folder / "name").exists()]


def find_ina(root: Path, read: ReadText = read_text) -> tuple[InaSensor, ...]:
    """Return the power monitors of a machine.

    Raises:
        MeterError: A monitor's settings cannot be read.
    """
    sensors = []
    for folder, name in sensor_folders(root, read):
        if name not in _CHIPS:
            continue
        shunt, interval = folder / "shunt_resistor", folder / "update_interval"
        sensors.append(
            InaSensor(
                folder=folder,
                chip=name,
                has_power=(folder / "power1_input").exists(),
                shunt_ohm=parse_milli(read(shunt), str(shunt)) * 1e-6 if shunt.exists() else None,
                conversion_s=_interval(read(interval), name) if interval.exists() else _CHIPS[name].conversion_s,
            )
        )
    return tuple(sensors)


def _interval(text: str, chip: str) -> float:
    milliseconds = parse_milli(text, f"update_interval of {chip}")
    return milliseconds * 1e-3 if milliseconds > 0 else _CHIPS[chip].conversion_s


class InaMeter:
    """One power monitor, in watts. What lies behind it is as its wiring has it: a supply line of the board, as a rule.

    Args:
        sensor: From `find_ina`.
        read: Returns the text of a file.
        now: The clock.
    """

    def __init__(self, sensor: InaSensor, *, read: ReadText = read_text, now: Clock = clock) -> None:
        shunt = f", shunt {sensor.shunt_ohm * 1e3:g} mΩ" if sensor.shunt_ohm is not None else ""
        self.facts = MeterFacts(
            name=f"{sensor.chip} ({sensor.folder.name}{shunt})",
            sensor="hwmon-ina2xx",
            scope="board",
            method="measured",
            quantity="watts",
            rate_hz=1 / sensor.conversion_s,
            resolution=power_step_w(sensor),
            lag_s=sensor.conversion_s,
            unseen=("what is not wired behind its shunt", "the power supply's losses"),
        )
        self._sensor = sensor
        self._read: ReadText = read
        self._now: Clock = now

    def open(self) -> None:
        """Read it once.

        Raises:
            MeterError: It cannot be read.
        """
        self._watts()

    def read(self) -> Reading:
        """Return the power now.

        Raises:
            MeterError: It cannot be read.
        """
        return Reading(*timed(self._watts, self._now))

    def close(self) -> None:
        """Do nothing: its files are closed after each reading."""

    def _watts(self) -> float:
        folder = self._sensor.folder
        if self._sensor.has_power:
            return parse_milli(self._read(folder / "power1_input"), "power1_input") * 1e-6
        millivolts = parse_milli(self._read(folder / "in1_input"), "in1_input")
        return millivolts * parse_milli(self._read(folder / "curr1_input"), "curr1_input") * 1e-6
