"""The battery of an Android device, over adb or on the device itself.

``/sys/class/power_supply/battery`` has ``current_now`` and ``voltage_now``. The kernel's documentation says µA, positive
while charging, and µV; several drivers have the sign the other way round, some count in mA, and one that does not know
gives -2147483648. So both are found out before anything is measured (`calibrate`), and what they were found from is kept:

- *Sign*: unplugged, current leaves the battery. Whatever sign it has then means "drawn". A later change of it means that a
  charger came.
- *Unit*: a device that is awake draws between 10 mA and 10 A. 10,000 and more is therefore µA, less is mA.
- *Voltage*: a battery has 2 to 20 V: 100,000 and more is µV, less is mV. `dumpsys battery` says it too, in mV, and must agree.

The whole device is measured, its screen included, so switch that off or keep it the same. A charger hides everything: adb
has to come over Wi-Fi, with the cable out.
Sources: https://docs.kernel.org/power/power_supply_class.html, and BatteryService.java of the Android sources.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Reading
from edgelm.meters.readers import Clock, RunProgram, clock, run_program, timed

__all__ = [
    "ADB_SHELL",
    "AndroidMeter",
    "BatteryCalibration",
    "BatteryState",
    "calibrate",
    "parse_battery",
    "parse_dumpsys",
]

ADB_SHELL = ("adb", "shell")

_FOLDER = "/sys/class/power_supply/battery"
_FILES = (f"{_FOLDER}/current_now", f"{_FOLDER}/voltage_now")
_POWERED = re.compile(r"\s*(AC|USB|Wireless|Dock) powered: (true|false)")
_FIELD = re.compile(r"\s*(status|level|voltage): (-?\d+)\b")
_UPDATES_STOPPED = "UPDATES STOPPED"

_UNKNOWN_CURRENT = -2147483648
_LEAST_UA = 10_000
_LEAST_UV = 100_000
_VOLTS = (2.0, 20.0)
_AMPERES = (0.01, 10.0)
_VOLTAGES_AGREE_WITHIN = 0.1
_CALIBRATION_READINGS = 5

# Fuel gauges refresh from four times a second to once in some seconds, and do not say when.
_RATE_HZ = 1.0
# A milliampere at 4 V: the step of gauges that count in mA. Finer ones are taken to be no better.
_RESOLUTION_W = 4e-3


@dataclass(frozen=True)
class BatteryState:
    """What ``dumpsys battery`` says.

    Attributes:
        chargers: What it is plugged into, such as ``("USB",)``.
        discharging: Whether its status is 3; None where it has none.
        voltage_v: The battery's; None where it says none.
        level_percent: Likewise.
        frozen: Whether someone has set the state by hand, so that it does not follow the device any more.
    """

    chargers: tuple[str, ...]
    discharging: bool | None
    voltage_v: float | None
    level_percent: int | None
    frozen: bool


@dataclass(frozen=True)
class BatteryCalibration:
    """How the two files are to be read.

    Attributes:
        sign: 1 where a drawn current is positive, -1 where it is negative.
        ampere: One unit of ``current_now``.
        volt: One unit of ``voltage_now``.
        evidence: What that was found from, for people.
    """

    sign: int
    ampere: float
    volt: float
    evidence: str


def parse_dumpsys(text: str) -> BatteryState:
    """Return what ``dumpsys battery`` printed. Makers add lines of their own, which are passed over."""
    chargers: list[str] = []
    fields: dict[str, int] = {}
    for line in text.splitlines():
        if (powered := _POWERED.fullmatch(line.rstrip())) and powered[2] == "true":
            chargers.append(powered[1])
        elif field := _FIELD.match(line):
            fields.setdefault(field[1], int(field[2]))
    millivolts = fields.get("voltage")
    return BatteryState(
        chargers=tuple(chargers),
        discharging=fields["status"] == 3 if "status" in fields else None,
        voltage_v=millivolts * 1e-3 if millivolts is not None and millivolts >= _VOLTS[0] * 1e3 else None,
        level_percent=fields.get("level"),
        frozen=_UPDATES_STOPPED in text,
    )


def parse_battery(text: str) -> tuple[int, int]:
    """Return ``current_now`` and ``voltage_now`` as ``cat`` printed them, one a line, in the units of their driver.

    Raises:
        MeterError: They are no two whole numbers, or the driver does not know the current.
    """
    lines = text.split()
    try:
        current, voltage = (int(line) for line in lines)
    except ValueError as error:
        raise MeterError(
            f"The battery's current and voltage read {text.strip()!r}, which are no two numbers. Many phones show them to "
            "root alone: use an external meter there."
        ) from error
    if current == _UNKNOWN_CURRENT:
        raise MeterError(f"The battery's current reads {current}, which is how its driver says that it does not know.")
    return current, voltage


def calibrate(state: BatteryState, readings: Sequence[tuple[int, int]]) -> BatteryCalibration:
    """Return how the battery's files are to be read, from readings while nothing charges it.

    Args:
        state: From `parse_dumpsys`.
        readings: From `parse_battery`, a few.

    Raises:
        MeterError: The device is plugged in or its state is set by hand, the current is 0 or of both signs, or the figures
            fit no unit.
    """
    if state.frozen:
        raise MeterError(
            "The battery's state was set by hand and does not follow the device. Undo it with: adb shell dumpsys battery reset"
        )
    if state.chargers or state.discharging is False:
        raise MeterError(
            f"The device is charged ({', '.join(state.chargers) or 'its status is not discharging'}), so its battery does "
            "not show what it draws. Connect adb over Wi-Fi (adb tcpip 5555, adb connect ADDRESS) and take the cable out."
        )
    currents = [current for current, _ in readings]
    if not currents or min(currents) <= 0 <= max(currents):
        raise MeterError(
            f"The battery's current reads {', '.join(map(str, currents)) or 'nothing'} while nothing charges it: it must be "
            "drawn all the time, so the sign cannot be told. Keep the device awake, or use an external meter."
        )
    middle = sorted(map(abs, currents))[len(currents) // 2]
    ampere = 1e-6 if middle >= _LEAST_UA else 1e-3
    if not _AMPERES[0] <= middle * ampere <= _AMPERES[1]:
        raise MeterError(
            f"The battery's current reads {middle}: as µA and as mA it is outside of what a device that is awake draws "
            f"({_AMPERES[0] * 1e3:g} mA to {_AMPERES[1]:g} A). Use an external meter."
        )
    return BatteryCalibration(
        sign=1 if currents[0] > 0 else -1,
        ampere=ampere,
        volt=_volt(readings[-1][1], state.voltage_v),
        evidence=(
            f"unplugged, current_now reads {currents[0]}: {'positive' if currents[0] > 0 else 'negative'} means drawn, and "
            f"{middle} is {middle * ampere:.3g} A in {'µA' if ampere == 1e-6 else 'mA'}"
        ),
    )


def _volt(voltage: int, told_v: float | None) -> float:
    unit = 1e-6 if voltage >= _LEAST_UV else 1e-3
    volts = voltage * unit
    if not _VOLTS[0] <= volts <= _VOLTS[1]:
        raise MeterError(f"The battery's voltage reads {voltage}, which is none of a battery in µV or in mV.")
    if told_v is not None and abs(volts - told_v) > _VOLTAGES_AGREE_WITHIN * told_v:
        raise MeterError(
            f"The battery's voltage reads {voltage}, and dumpsys says {told_v:g} V: the two do not agree, so neither is used."
        )
    return unit


class AndroidMeter:
    """What the battery gives, in watts.

    Args:
        shell: What goes before a command: ``("adb", "shell")``, ``("adb", "-s", SERIAL, "shell")``, or ``()`` on the device.
        rate_hz: How often the fuel gauge has a new value, where that is known.
        run: Runs a program and returns what it printed.
        now: The clock.
    """

    def __init__(
        self,
        *,
        shell: Sequence[str] = ADB_SHELL,
        rate_hz: float = _RATE_HZ,
        run: RunProgram = run_program,
        now: Clock = clock,
    ) -> None:
        self.facts = MeterFacts(
            name="Android battery",
            sensor="android-battery",
            scope="device",
            method="measured",
            quantity="watts",
            rate_hz=rate_hz,
            resolution=_RESOLUTION_W,
            lag_s=1 / rate_hz,
            unseen=("which part of the device drew it: the screen and the radios are in it",),
        )
        self._shell = tuple(shell)
        self._run: RunProgram = run
        self._now: Clock = now
        self.calibration: BatteryCalibration | None = None

    def open(self) -> None:
        """Find out the sign and the units; `calibration` has them from then on.

        Raises:
            MeterError: No device answers, it is plugged in, or its figures cannot be understood.
        """
        state = parse_dumpsys(self._run((*self._shell, "dumpsys", "battery")))
        self.calibration = calibrate(state, [self._files() for _ in range(_CALIBRATION_READINGS)])

    def read(self) -> Reading:
        """Return the power now.

        Raises:
            MeterError: No device answers, it is being charged, or the meter is not open.
        """
        return Reading(*timed(self._watts, self._now))

    def close(self) -> None:
        """Forget the calibration: a device may be plugged in meanwhile."""
        self.calibration = None

    def _files(self) -> tuple[int, int]:
        return parse_battery(self._run((*self._shell, "cat", *_FILES)))

    def _watts(self) -> float:
        known = self.calibration
        if known is None:
            raise MeterError("The battery was read before it was opened. Call open() first.")
        current, voltage = self._files()
        amperes = current * known.sign * known.ampere
        if amperes < 0:
            raise MeterError("The battery's current has changed its sign: a charger was plugged in. Take it out.")
        return amperes * voltage * known.volt
