"""The tables of a report, as cells: what HTML and Markdown write each in its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgelm.bench import GenerationRun, Run
from edgelm.report.figures import FIELDS
from edgelm.report.foreign import ForeignRun
from edgelm.report.numbers import DASH, digits, energy, latency, milliseconds, percent
from edgelm.report.quantities import shown
from edgelm.report.rows import Row

__all__ = ["Cell", "Column", "Table", "answers_table", "placement_words", "writing_table"]

Sort = Literal["rising", "falling"]


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What it shows.
        value: What it is sorted by; None where it was not measured.
        sub: Said in addition.
        best: Whether it is the best of its column.
    """

    text: str
    value: float | None
    sub: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: Of the figure.
        heading: Shown above.
        sort: In which order it is sorted first.
        always: Whether it is there even where no run has the figure.
    """

    name: str
    heading: str
    sort: Sort
    always: bool = False


@dataclass(frozen=True)
class Table:
    """A table of runs: a row of cells for each, in the order of the columns."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[Row, tuple[Cell, ...]], ...]


_ANSWERS = (
    Column("accuracy", "Accuracy", "falling", always=True),
    Column("p50", "p50", "rising", always=True),
    Column("p90", "p90", "rising", always=True),
    Column("p99", "p99", "rising", always=True),
    Column("deadline_hit_rate", "In time", "falling"),
    Column("throughput", "Queries/s", "falling", always=True),
    Column("energy", "Energy", "rising", always=True),
    Column("modelled_energy", "Modelled energy", "rising"),
    Column("answers_per_charge", "Per charge", "falling"),
    Column("peak_memory", "Peak memory", "rising", always=True),
    Column("size", "File", "rising", always=True),
    Column("load", "Load", "rising", always=True),
)
_WRITING = (
    Column("depth", "Depth", "rising", always=True),
    Column("decode_tokens_per_s", "Writes, tokens/s", "falling", always=True),
    Column("prefill_tokens_per_s", "Reads, tokens/s", "falling", always=True),
    Column("ttft", "First token", "rising", always=True),
    Column("token_p50", "Token p50", "rising", always=True),
    Column("token_p99", "Token p99", "rising", always=True),
    Column("energy_per_token", "Energy a token", "rising", always=True),
    Column("energy", "Energy an answer", "rising"),
    Column("modelled_energy", "Modelled energy", "rising"),
    Column("answers_per_charge", "Per charge", "falling"),
    Column("peak_memory", "Peak memory", "rising", always=True),
    Column("size", "File", "rising", always=True),
)
_IN_MILLISECONDS = frozenset({"p50", "p90", "p99"})


def answers_table(rows: Sequence[Row]) -> Table:
    """Return the table of models that answer; latencies are in milliseconds."""
    return _table(rows, _ANSWERS)


def writing_table(rows: Sequence[Row]) -> Table:
    """Return the table of language models."""
    return _table(rows, _WRITING)


def placement_words(row: Row) -> str:
    """Return where the operators ran; a dash where that is not recorded."""
    if row.placement:
        return ", ".join(f"{count:,} on {where}" for where, count in row.placement.items())
    return DASH


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    kept = tuple(column for column in columns if column.always or any(_value(row, column) is not None for row in rows))
    bests = {column.name: _best(rows, column) for column in kept}
    lines = tuple((row, tuple(_cell(row, column, bests[column.name]) for column in kept)) for row in rows)
    return Table(kept, lines)


def _best(rows: Sequence[Row], column: Column) -> float | None:
    if column.name in ("depth", "modelled_energy", "accuracy", "energy", "answers_per_charge", "energy_per_token"):
        return None  # not comparable between all rows: other data, other meters, other conversations
    known = [value for row in rows if (value := _value(row, column)) is not None]
    if not known:
        return None
    best = min(known) if column.sort == "rising" else max(known)
    # What most of them share distinguishes none.
    return best if 2 * known.count(best) <= len(known) else None


def _value(row: Row, column: Column) -> float | None:
    if column.name == "modelled_energy":
        modelled = None if isinstance(row.result, ForeignRun) else row.result.modelled_energy
        return None if modelled is None else modelled.per_inference_j
    return row.value(column.name)


def _cell(row: Row, column: Column, best: float | None) -> Cell:
    value = _value(row, column)
    sub = _sub(row, column)
    if value is None:
        missing = "not measured" if column.name in ("energy", "accuracy", "energy_per_token") else DASH
        return Cell(missing, None, sub)
    if column.name in _IN_MILLISECONDS:
        text = milliseconds(value)
    elif column.name == "modelled_energy":
        text = f"about {energy(value)}"
    elif column.name.endswith("tokens_per_s") or column.name == "throughput":
        text = digits(value)
    else:
        text = shown(value, FIELDS[column.name].dimension)
    return Cell(text, value, sub, best=best is not None and value == best)


def _sub(row: Row, column: Column) -> str:
    result = row.result
    if isinstance(result, ForeignRun):
        return _foreign_sub(row, column)
    if column.name == "accuracy" and isinstance(result, Run) and result.bundle.accuracy is not None:
        return f"Keras {percent(result.bundle.accuracy.keras)}"
    if column.name == "deadline_hit_rate" and isinstance(result, Run) and result.settings.deadline_s is not None:
        return f"of {latency(result.settings.deadline_s)}"
    if column.name == "energy" and row.value("energy") is not None:
        spread = result.energy.standard_j
        return f"{'' if spread is None else f'± {energy(spread)}, '}{result.energy.scope or 'scope not known'}"
    if column.name == "energy" and isinstance(result, GenerationRun) and result.energy.method == "modelled":
        return "modelled"
    return ""


def _foreign_sub(row: Row, column: Column) -> str:
    """Return what another tool states instead of a figure that it does not have."""
    if column.name == "p50" and row.value("p50") is None:
        for name, words in (("mean", "mean"), ("reported_latency", "stated")):
            value = row.value(name)
            if value is not None:
                return f"{words} {milliseconds(value)}"
    if column.name == "token_p50" and row.value("reported_latency") is not None:
        return f"mean {latency(row.value('reported_latency'))}"
    return ""
