"""RAPL: the energy counters of x86 processors, through Linux's powercap.

One counter a package (socket), in µJ, which starts again at 0 after ``max_energy_range_uj``. The zones inside a package
(``core``, ``uncore``, ``dram``) are already in it and must not be added, and ``psys`` holds the packages. AMD's processors
have the same files. Reading is for root only since CVE-2020-8694.
Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Reading
from edgelm.meters.readers import Clock, ReadText, clock, read_text, timed

__all__ = ["POWERCAP", "RaplMeter", "RaplZone", "counter_step", "find_packages", "parse_counter"]

POWERCAP = Path("sys/class/powercap")
_PACKAGE_FOLDER = re.compile(r"intel-rapl:\d+")
# Intel's Software Developer's Manual, volume 3, "RAPL Interfaces": the counters move about every millisecond.
_RATE_HZ = 1000.0
# The unit differs between processors, and the files do not tell it: 15.3 µJ by Intel's manual, 61 µJ on most. Either is
# far below what passes in the millisecond between two moves of the counter.
_RESOLUTION_J = 61e-6


@dataclass(frozen=True)
class RaplZone:
    """One package.

    Attributes:
        folder: Its folder in sysfs.
        name: Such as ``package-0``.
        range_uj: Where its counter starts again at 0.
    """

    folder: Path
    name: str
    range_uj: int


def parse_counter(text: str) -> int:
    """Return the µJ that an ``energy_uj`` or ``max_energy_range_uj`` holds.

    Raises:
        MeterError: It is no whole number.
    """
    try:
        return int(text)
    except ValueError as error:
        raise MeterError(f"A RAPL counter reads {text!r}, which is no number of µJ.") from error


def counter_step(before: int, after: int, range_uj: int) -> int:
    """Return how far a counter moved, which starts again at 0 after `range_uj`; at most one such start is assumed."""
    return after - before if after >= before else after - before + range_uj


def find_packages(root: Path, read: ReadText = read_text) -> tuple[RaplZone, ...]:
    """Return the packages of a machine, in order; none where it has no RAPL.

    Args:
        root: The root of the file system.
        read: Returns the text of a file.

    Raises:
        MeterError: A package's files cannot be read. Their counters are not touched.
    """
    if not (root / POWERCAP).is_dir():
        return ()
    folders = [folder for folder in (root / POWERCAP).iterdir() if _PACKAGE_FOLDER.fullmatch(folder.name)]
    zones = []
    for folder in sorted(folders, key=lambda item: int(item.name.partition(":")[2])):
        if (name := read(folder / "name")).startswith("package"):
            zones.append(RaplZone(folder, name, parse_counter(read(folder / "max_energy_range_uj"))))
    return tuple(zones)


class RaplMeter:
    """The sum over all packages, in joules since `open`.

    Args:
        zones: From `find_packages`, at least one.
        read: Returns the text of a file.
        now: The clock.
    """

    def __init__(self, zones: tuple[RaplZone, ...], *, read: ReadText = read_text, now: Clock = clock) -> None:
        self.facts = MeterFacts(
            name=f"RAPL {' + '.join(zone.name for zone in zones)}",
            sensor="rapl",
            scope="package",
            method="measured",
            quantity="joules",
            rate_hz=_RATE_HZ,
            resolution=_RESOLUTION_J * len(zones),
            lag_s=1 / _RATE_HZ,
            range_j=min(zone.range_uj for zone in zones) * 1e-6,
            unseen=("memory, disk and network outside the processor's package", "the power supply's losses"),
        )
        self._zones = zones
        self._read: ReadText = read
        self._now: Clock = now
        self._last: list[int] = []
        self._total_uj = 0

    def open(self) -> None:
        """Read each counter once, so that the figures start at 0.

        Raises:
            MeterError: This user may not read them; the message has the command that allows it.
        """
        self._last = self._counters()
        self._total_uj = 0

    def read(self) -> Reading:
        """Return the joules since `open`.

        A counter that starts again at 0 is followed. Its shortest round is 65 kJ, some 6 minutes at 180 W: read it more
        often than that.

        Raises:
            MeterError: A counter cannot be read, or the meter is not open.
        """
        if not self._last:
            raise MeterError("The RAPL meter was read before it was opened. Call open() first.")
        return Reading(*timed(self._joules, self._now))

    def close(self) -> None:
        """Forget the counters."""
        self._last = []

    def _joules(self) -> float:
        counters = self._counters()
        for zone, before, after in zip(self._zones, self._last, counters, strict=True):
            self._total_uj += counter_step(before, after, zone.range_uj)
        self._last = counters
        return self._total_uj * 1e-6

    def _counters(self) -> list[int]:
        return [parse_counter(self._read(zone.folder / "energy_uj")) for zone in self._zones]
