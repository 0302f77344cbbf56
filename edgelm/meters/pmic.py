"""The power controller of the Raspberry Pi 5, through ``vcgencmd pmic_read_adc``.

It prints a current or a voltage a line::

    VDD_CORE_A current(7)=0.94657990A
    VDD_CORE_V volt(15)=0.72097620V
       EXT5V_V volt(24)=5.11478000V

Twelve rails have both. The 5 V input has a voltage alone, so what is fed past the controller is not seen: USB devices (a
Coral accelerator among them), HATs, the fan, the controller's own losses. Each call is a process, and the converter takes
some 23 ms: pulses of milliseconds are not seen either. Currents below a converter's step read as 0, such as the memory's
when it is idle. The Raspberry Pi 4 and the Zero have no current sensor at all.
Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Reading
from edgelm.meters.readers import Clock, RunProgram, clock, run_program, timed

__all__ = ["COMMAND", "PmicMeter", "PmicReading", "parse_pmic", "wall_estimate_w"]

COMMAND = ("vcgencmd", "pmic_read_adc")

_LINE = re.compile(
    r"\s*(?P<rail>\w+)_(?P<kind>[AV])\s+(?:current|volt)\(\d+\)=(?P<value>-?\d+(?:\.\d+)?)(?P<unit>[AV])"
)
_RATE_HZ = 10.0
_READ_S = 0.025
# The printed figures are multiples of 8.93 mA on VDD_CORE, of 0.976 mA on the seven rails of 0.6 to 3.7 V before it (12.4 V
# together), of 0.061 mA on the last four, and of about 0.37 mV: 8 + 12 + 1 mW, and 2 mW for the voltage of VDD_CORE at 5 A.
_RESOLUTION_W = 0.025
# Fitted by users against meters at the plug, on boards of their own; the fit's error is not published.
_FIT_SLOPE = 1.1451
_FIT_OFFSET_W = 0.5879


@dataclass(frozen=True)
class PmicReading:
    """One answer of the controller.

    Attributes:
        rails_w: The power of each rail that has a current and a voltage, by its name.
        voltage_only: The names of those that have a voltage alone.
    """

    rails_w: Mapping[str, float]
    voltage_only: tuple[str, ...]

    @property
    def power_w(self) -> float:
        """The sum of the rails."""
        return sum(self.rails_w.values())


def parse_pmic(text: str) -> PmicReading:
    """Return what ``vcgencmd pmic_read_adc`` printed.

    Raises:
        MeterError: No rail has both a current and a voltage: another board, or an older firmware.
    """
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line.rstrip())
        if found and found["kind"] == found["unit"]:
            (amperes if found["kind"] == "A" else volts)[found["rail"]] = float(found["value"])
    if not amperes.keys() & volts.keys():
        said = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        raise MeterError(
            f"'{' '.join(COMMAND)}' lists no rail with a current and a voltage; it says: {said}. Only the Raspberry Pi 5 "
            "and the Compute Module 5 have such a controller: use an external meter on other boards."
        )
    rails = {rail: amperes[rail] * volts[rail] for rail in amperes if rail in volts}
    return PmicReading(rails, tuple(rail for rail in volts if rail not in amperes))


def wall_estimate_w(rails_w: float) -> float:
    """Return what users found at the plug for a sum of the rails: a model, not a measurement."""
    return _FIT_SLOPE * rails_w + _FIT_OFFSET_W


class PmicMeter:
    """The sum of the rails, in watts.

    Args:
        wall_estimate: Whether to return `wall_estimate_w` of it, marked as modelled.
        run: Runs a program and returns what it printed.
        now: The clock.
    """

    def __init__(self, *, wall_estimate: bool = False, run: RunProgram = run_program, now: Clock = clock) -> None:
        unseen: tuple[str, ...] = (
            "USB devices, HATs and the fan: the 5 V input (EXT5V) has no current sensor",
            "the losses of the power controller and of the power supply",
            "pulses of milliseconds",
        )
        if wall_estimate:
            unseen = ("what users' fit (1.1451 x rails + 0.5879 W) does not hold for: other devices, other supplies",)
        self.facts = MeterFacts(
            name="Raspberry Pi 5 PMIC" + (", fitted to the wall" if wall_estimate else ""),
            sensor="pi5-pmic",
            scope="wall" if wall_estimate else "board",
            method="modelled" if wall_estimate else "measured",
            quantity="watts",
            rate_hz=_RATE_HZ,
            resolution=_RESOLUTION_W * (_FIT_SLOPE if wall_estimate else 1.0),
            lag_s=_READ_S,
            unseen=unseen,
        )
        self._wall_estimate = wall_estimate
        self._run: RunProgram = run
        self._now: Clock = now

    def open(self) -> None:
        """Read it once.

        Raises:
            MeterError: It is another board, or the firmware may not be asked.
        """
        self._watts()

    def read(self) -> Reading:
        """Return the power now.

        Raises:
            MeterError: The controller gave no answer.
        """
        return Reading(*timed(self._watts, self._now))

    def close(self) -> None:
        """Do nothing: each reading is a process of its own."""

    def _watts(self) -> float:
        rails_w = parse_pmic(self._run(COMMAND)).power_w
        return wall_estimate_w(rails_w) if self._wall_estimate else rails_w
