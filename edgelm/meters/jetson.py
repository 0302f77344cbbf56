"""The power monitor of NVIDIA's Jetson boards: an INA3221 with three rails, of which VDD_IN is the whole module.

Current kernels show it in hwmon (``in1_label``, ``in1_input`` in mV, ``curr1_input`` in mA). JetPack before 5 shows it in
iio (``rail_name_0``, ``in_power0_input`` in mW). The other rails are parts of VDD_IN and must not be added to it; the label
``NC`` is a channel without a rail, and channel 7 is a sum of shunt voltages.
Sources: https://docs.kernel.org/hwmon/ina3221.html, and "Software-Based Power Consumption Modeling" in NVIDIA's Jetson Linux
Developer Guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import MeterError
from edgelm.meters.hwmon import parse_milli, sensor_folders
from edgelm.meters.meter import MeterFacts, Reading
from edgelm.meters.readers import Clock, ReadText, clock, read_text, timed

__all__ = ["JetsonMeter", "JetsonRail", "find_rails", "input_rail"]

IIO = Path("sys/bus/i2c/drivers/ina3221x")
_CHANNELS = (1, 2, 3)
# The rail that feeds the module, by the names of Orin and Xavier NX, and of Nano and TX2.
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
# By the INA3221's data sheet the shunt's voltage has steps of 40 µV, and the supply's of 8 mV.
_SHUNT_STEP_V = 40e-6
_SUPPLY_STEP_V = 8e-3
# On the Jetsons VDD_IN carries at most 5 A at 20 V, and its shunt is 5 mΩ where the files do not tell.
_LARGEST_CURRENT_A = 5.0
_LARGEST_SUPPLY_V = 20.0
_SHUNT_OHM = 5e-3
# Three channels of two conversions of 1.1 ms, with 16 averages, as NVIDIA's device trees set it up; NVIDIA's own tools
# read ten times a second.
_CONVERSION_S = 0.1


@dataclass(frozen=True)
class JetsonRail:
    """A rail.

    Attributes:
        name: Its label, such as ``VDD_IN``.
        folder: Where its files are.
        channel: Its number in their names.
        iio: Whether they are those of iio.
    """

    name: str
    folder: Path
    channel: int
    iio: bool


def find_rails(root: Path, read: ReadText = read_text) -> tuple[JetsonRail, ...]:
    """Return the rails that an INA3221 of the machine has, without unused channels and sums.

    Raises:
        MeterError: A label cannot be read.
    """
    rails = []
    for folder, name in sensor_folders(root, read):
        if not name.startswith("ina3221"):
            continue
        for channel in _CHANNELS:
            label = folder / f"in{channel}_label"
            if label.exists():
                rails.append(JetsonRail(read(label), folder, channel, iio=False))
    if (root / IIO).is_dir():
        for folder in sorted((root / IIO).glob("*/iio:device*")):
            for channel in range(len(_CHANNELS)):
                label = folder / f"rail_name_{channel}"
                if label.exists():
                    rails.append(JetsonRail(read(label), folder, channel, iio=True))
    return tuple(rail for rail in rails if rail.name not in ("NC", ""))


def input_rail(rails: tuple[JetsonRail, ...]) -> JetsonRail:
    """Return the rail that feeds the whole module.

    Raises:
        MeterError: None of them does; the message names those that there are.
    """
    for name in _INPUT_RAILS:
        for rail in rails:
            if rail.name == name:
                return rail
    raise MeterError(
        f"None of the rails {', '.join(rail.name for rail in rails)} feeds the whole board, and adding parts would miss "
        "what lies between them. Measure at the supply with an external meter."
    )


class JetsonMeter:
    """The rail that feeds the module, in watts.

    Args:
        rail: From `input_rail`.
        read: Returns the text of a file.
        now: The clock.

    Raises:
        MeterError: The shunt's resistance cannot be read.
    """

    def __init__(self, rail: JetsonRail, *, read: ReadText = read_text, now: Clock = clock) -> None:
        shunt = rail.folder / f"shunt{rail.channel}_resistor"
        shunt_ohm = parse_milli(read(shunt), str(shunt)) * 1e-6 if shunt.exists() else _SHUNT_OHM
        self.facts = MeterFacts(
            name=f"ina3221 {rail.name} ({rail.folder.name})",
            sensor="ina3221",
            scope="board",
            method="measured",
            quantity="watts",
            rate_hz=1 / _CONVERSION_S,
            resolution=_SHUNT_STEP_V / shunt_ohm * _LARGEST_SUPPLY_V + _SUPPLY_STEP_V * _LARGEST_CURRENT_A,
            lag_s=_CONVERSION_S,
            unseen=("what the carrier board feeds past the module: USB devices, displays", "the power supply's losses"),
        )
        self._rail = rail
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
        folder, channel = self._rail.folder, self._rail.channel
        if self._rail.iio:
            name = f"in_power{channel}_input"
            return parse_milli(self._read(folder / name), name) * 1e-3
        millivolts = parse_milli(self._read(folder / f"in{channel}_input"), f"in{channel}_input")
        return millivolts * parse_milli(self._read(folder / f"curr{channel}_input"), f"curr{channel}_input") * 1e-6
