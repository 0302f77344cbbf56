"""Which energy meter a benchmark reads: what ``--meter`` says, or what this machine has."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import InputError, MeterError, unknown_name
from edgelm.meters import FakeMeter, Found, LineMeter, Meter, find_meters, open_serial, open_stdin
from edgelm.meters.lines import DescriptorLines, parse_line
from edgelm.meters.meter import Quantity

__all__ = ["MeterChoice", "choose_meter", "pick"]

_PROBED_LINES = 6
_FAKE_W = 5.0


@dataclass(frozen=True)
class MeterChoice:
    """What reads the energy.

    Attributes:
        meter: Read while it runs; None where there is none.
        csv: The file that an external meter writes meanwhile; None where there is none.
        reason: Why neither.
    """

    meter: Meter | None = None
    csv: Path | None = None
    reason: str | None = None


def choose_meter(named: str | Meter) -> MeterChoice:
    """Return the meter that a name stands for.

    Args:
        named: ``auto`` takes the first that can be read here; ``none`` takes none. A name is that of a meter or of its kind,
            as ``edgelm doctor`` lists them. ``csv:FILE`` is the file of an external meter, read at the end; ``lines:PORT``,
            ``lines:PORT@BAUD`` and ``lines:-`` are one that sends lines to a serial port or into stdin. A `Meter` is itself.

    Raises:
        MeterError: The meter is missing, or this user may not read it.
        InputError: There is no meter of that name.
    """
    if not isinstance(named, str):
        return MeterChoice(meter=named)
    if named == "none":
        return MeterChoice(reason="no meter was asked for")
    if named == "fake":
        return MeterChoice(meter=FakeMeter(lambda _: _FAKE_W))
    kind, colon, rest = named.partition(":")
    if colon and kind == "csv":
        if not rest:
            raise InputError("'csv:' names no file. Write --meter csv:FILE with the file that the meter writes.")
        return MeterChoice(csv=Path(rest))
    if colon and kind == "lines":
        return MeterChoice(meter=_line_meter(rest))
    if named == "auto":
        # A phone that happens to be connected is not this machine.
        return pick("auto", find_meters(which=lambda name: None if name == "adb" else shutil.which(name)))
    return pick(named, find_meters())


def pick(named: str, found: Sequence[Found]) -> MeterChoice:
    """Return one of the meters that were found.

    Raises:
        MeterError: The one that is named cannot be read.
        InputError: There is none of that name.
    """
    usable = [each for each in found if each.meter is not None]
    if named == "auto":
        if usable:
            return MeterChoice(meter=usable[0].meter)
        missing = "; ".join(f"{each.name}: {each.why}" for each in found if each.state == "denied")
        advice = missing or "edgelm doctor says what each would need"
        return MeterChoice(reason=f"no meter can be read here ({advice})")
    wanted = _plain(named)
    for each in usable:
        if each.meter is not None and wanted in (_plain(each.name), _plain(each.meter.facts.sensor)):
            return MeterChoice(meter=each.meter)
    for each in found:
        if wanted == _plain(each.name) and each.meter is None:
            fix = f" To get it: {each.fix}." if each.fix else ""
            raise MeterError(f"The meter '{named}' is {each.state}: {each.why}.{fix}")
    names = {*(each.name for each in found), *(each.meter.facts.sensor for each in usable if each.meter)}
    raise InputError(unknown_name("meter", named, {*names, "auto", "none", "csv:FILE", "lines:PORT"}))


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("(", " ").replace(")", " ").split())


def _line_meter(where: str) -> LineMeter:
    port, _, baud = where.partition("@")
    if not port or (baud and not baud.isdigit()):
        raise InputError(
            f"'lines:{where}' is no port. Write lines:/dev/ttyUSB0, lines:/dev/ttyUSB0@9600, or lines:- for stdin."
        )
    source: DescriptorLines = open_stdin() if port == "-" else open_serial(Path(port), baud=int(baud or 115200))
    source.next_line()  # it may have begun before anyone listened
    begin = time.monotonic()
    quantities: set[Quantity] = {parse_line(source.next_line())[0] for _ in range(_PROBED_LINES)}
    rate_hz = _PROBED_LINES / max(time.monotonic() - begin, 1e-3)
    if len(quantities) > 1:
        raise MeterError(f"{port} sends watts in one line and joules in the next. Let the meter send one of both.")
    return LineMeter(source, name=f"lines of {port}", rate_hz=rate_hz, quantity=quantities.pop())
