"""What an external meter wrote into a CSV file: USB testers, wall plugs, bench supplies.

Its columns are found by name and unit: ``Power (W)``, ``power_mw``, ``Voltage[V]`` and ``Current[mA]``, ``Energy (Wh)``.
Power is taken before voltage times current, and these before energy, which many meters count in coarse steps. The times
are those of the meter's clock: `align` brings them to the load's.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Quantity, Scope
from edgelm.meters.trace import FloatArray, Trace, make_trace
from edgelm.meters.units import Dimension, find_unit

__all__ = ["MeterTable", "load_meter_csv", "parse_meter_csv"]

_DELIMITERS = (",", ";", "\t")
_BRACKETED_UNIT = re.compile(r"[(\[]\s*([^)\]]+?)\s*[)\]]\s*$")
_NAMES: tuple[tuple[Dimension, re.Pattern[str]], ...] = (
    ("time", re.compile(r"\b(time|timestamp|date|datetime|elapsed|t)\b")),
    ("power", re.compile(r"\b(power|watts?|p)\b")),
    ("voltage", re.compile(r"\b(voltage|volts?|v|u|vbus)\b")),
    ("current", re.compile(r"\b(current|amps?|amperes?|i|ibus)\b")),
    ("energy", re.compile(r"\b(energy|joules?)\b")),
)
_CLOCK_TIME = re.compile(r"(?:(?P<day>\d+)\.)?(?P<hour>\d{1,2}):(?P<minute>\d{2}):(?P<second>\d{2}(?:[.,]\d+)?)")


@dataclass(frozen=True, eq=False)
class MeterTable:
    """The readings of a file.

    Attributes:
        time_s: float64 (N,), by the meter's clock; since 1970 where the file has dates.
        value: float64 (N,), watts or joules.
        quantity: Which of both.
        columns: The headings that they came from.
        left_out: Rows without a number in one of these columns.
    """

    time_s: FloatArray
    value: FloatArray
    quantity: Quantity
    columns: tuple[str, ...]
    left_out: int


@dataclass(frozen=True)
class _Column:
    index: int
    name: str
    dimension: Dimension
    scale: float


def load_meter_csv(path: Path, *, scope: Scope = "wall", column: str | None = None) -> Trace:
    """Return an external meter's file as a trace, by its own clock.

    The resolution is the smallest difference between two of its values.

    Args:
        path: The file.
        scope: What the meter sees: ``device`` behind the power supply (a USB tester), ``wall`` before it.
        column: The heading to take where several would do.

    Raises:
        MeterError: The file cannot be read or understood.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise MeterError(f"The meter's file {path} cannot be read: {error.strerror}.") from error
    table = parse_meter_csv(text, column=column)
    steps = np.diff(np.unique(table.value))
    period_s = float(np.median(np.diff(table.time_s))) if len(table.time_s) > 1 else 0.0
    facts = MeterFacts(
        name=f"{path.name} ({', '.join(table.columns[1:])})",
        sensor="external",
        scope=scope,
        method="measured",
        quantity=table.quantity,
        rate_hz=1 / period_s if period_s > 0 else 1.0,
        resolution=float(steps.min()) if steps.size else 0.0,
        lag_s=max(period_s, 0.0),
        unseen=() if scope == "wall" else ("the losses of the power supply before it",),
    )
    events = (f"{table.left_out} rows without a number were left out",) if table.left_out else ()
    return make_trace(facts, table.time_s, table.value, events=events)


def parse_meter_csv(text: str, *, column: str | None = None) -> MeterTable:
    """Return the readings of a CSV text, with ``,``, ``;`` or tabs between its columns.

    Lines before the one with the headings are passed over. A decimal comma is understood where ``;`` or a tab separates.

    Args:
        text: The file's text.
        column: The heading to take where several would do.

    Raises:
        MeterError: No line has headings of a time and of a power, an energy, or a voltage and a current; several would
            do; or no row has numbers.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        for delimiter in _DELIMITERS:
            headings = next(csv.reader([line], delimiter=delimiter))
            chosen = _choose(_columns(headings), column) if len(headings) > 1 else None
            if chosen is not None:
                return _rows(lines[number + 1 :], delimiter, *chosen)
    wanted = "a power (W), an energy (J, Wh), or a voltage (V) and a current (A)" if column is None else f"'{column}'"
    raise MeterError(
        f"No line of the meter's file has headings of a time (s) and of {wanted}. Its first line is: "
        f"{lines[0][:80] if lines else 'missing'}. Name the columns so, with their units in brackets."
    )


def _columns(headings: Sequence[str]) -> list[_Column]:
    found = []
    for index, heading in enumerate(headings):
        column = _column(index, heading.strip())
        if column is not None:
            found.append(column)
    return found


def _column(index: int, heading: str) -> _Column | None:
    bracketed = _BRACKETED_UNIT.search(heading)
    name = heading[: bracketed.start()] if bracketed else heading
    words = [word for word in re.split(r"[_\s./-]+", name.lower()) if word]
    # A bare letter is a heading of its own (``V``), and a unit after another word only (``power_w``).
    unit = find_unit(bracketed[1]) if bracketed else find_unit(words[-1]) if len(words) > 1 else None
    if bracketed and unit is None and find_unit(name) is None:
        return None  # ``Temp (C)``, ``Capacity (mAh)``
    if unit is None:
        unit = find_unit(name)
    if unit is not None:
        return _Column(index, heading, *unit)
    for dimension, pattern in _NAMES:
        if pattern.search(" ".join(words)):
            return _Column(index, heading, dimension, 1.0)
    return None


def _choose(columns: Sequence[_Column], wanted: str | None) -> tuple[_Column, tuple[_Column, ...]] | None:
    """Return the columns of the time and of the value, None where they are not there."""
    by_dimension: dict[str, list[_Column]] = {}
    for column in columns:
        by_dimension.setdefault(column.dimension, []).append(column)
    times = by_dimension.get("time")
    if not times:
        return None
    if wanted is not None:
        named = [column for column in columns if column.name == wanted and column.dimension in ("power", "energy")]
        return (times[0], (named[0],)) if named else None
    for dimensions in (("power",), ("voltage", "current"), ("energy",)):
        candidates = [by_dimension.get(dimension, []) for dimension in dimensions]
        if all(candidates):
            for several in candidates:
                if len(several) > 1:
                    names = ", ".join(f"'{column.name}'" for column in several)
                    raise MeterError(f"The columns {names} of the meter's file would all do. Name the one to take.")
            return times[0], tuple(candidate[0] for candidate in candidates)
    return None


def _rows(lines: Sequence[str], delimiter: str, time: _Column, values: tuple[_Column, ...]) -> MeterTable:
    times, products, left_out = [], [], 0
    for row in csv.reader(lines, delimiter=delimiter):
        try:
            moment = _moment(row[time.index], time.scale, delimiter)
            factors = [_number(row[column.index], delimiter) * column.scale for column in values]
        except (IndexError, ValueError):
            left_out += 1
            continue
        times.append(moment)
        products.append(float(np.prod(factors)))
    if not times:
        raise MeterError(f"No row of the meter's file has numbers in {', '.join(column.name for column in values)}.")
    return MeterTable(
        np.array(times),
        np.array(products),
        "joules" if values[0].dimension == "energy" else "watts",
        (time.name, *(column.name for column in values)),
        left_out,
    )


def _number(text: str, delimiter: str) -> float:
    return float(text.strip().replace(",", ".") if delimiter != "," else text)


def _moment(text: str, scale: float, delimiter: str) -> float:
    """Return seconds of a number, of ``HH:MM:SS``, or of a date as ISO 8601 writes it.

    Raises:
        ValueError: It is none of these.
    """
    try:
        return _number(text, delimiter) * scale
    except ValueError:
        pass
    if clock := _CLOCK_TIME.fullmatch(text.strip()):
        seconds = float(clock["second"].replace(",", "."))
        return ((int(clock["day"] or 0) * 24 + int(clock["hour"])) * 60 + int(clock["minute"])) * 60 + seconds
    moment = datetime.fromisoformat(text.strip())
    # Without a zone any will do: only differences count, and `align` finds the rest.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
