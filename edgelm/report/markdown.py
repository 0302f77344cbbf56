"""The same for a pull request: a table for each machine, and what must be known to believe it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgelm.errors import InputError
from edgelm.report.figures import Result
from edgelm.report.numbers import DASH
from edgelm.report.quantities import shown
from edgelm.report.rows import Row, group_runs
from edgelm.report.tables import Cell, Column
from edgelm.report.view import GroupView, Section, view

__all__ = ["render_markdown"]

# What means something in the middle of a line; the rest of Markdown's signs, escaped, would only be hard to read.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")
_LINKED = re.compile(r"#|@|:(?=//)|www(?=\.)", re.IGNORECASE)
_UNITS = {"p50": "p50 ms", "p90": "p90 ms", "p99": "p99 ms"}
_MOST_CAUTIONS = 12
_LEFT_OUT = frozenset({"load"})


def render_markdown(results: Sequence[Result], *, battery_wh: float | None = None) -> str:
    """Return compact tables of the runs, for each machine.

    Args:
        results: Runs of any kind, other tools' included.
        battery_wh: Of every device here; None leaves it to the devices' profiles.

    Raises:
        InputError: There is no run.
    """
    if not results:
        raise InputError("There is no run to report on. Make one with: edgelm benchmark BUNDLE -o RUN.json")
    groups = group_runs(results, battery_wh=battery_wh)
    parts = ["\n".join(_group(view(group))) for group in groups]
    legend = (
        "Latency from the text to the answer, tokenising included; percentiles are nearest ranks. "
        f"{DASH}: not measured, or too few queries (10 for p90, 100 for p99). Ratios with an interval were measured in turns."
    )
    return "\n".join([*parts, f"<sub>{legend}</sub>", ""])


def _group(each: GroupView) -> Iterator[str]:
    group = each.group
    yield f"### {_plain(group.title)}"
    yield ""
    for statement in group.statements:
        yield f"> **Not the device's own numbers.** {_plain(statement)}"
        yield ""
    for section in each.sections:
        yield from _section(section)
    if group.untimed:
        yield from _rows(
            ["#", "Ran, not timed", "Evidence", "Accuracy", "File"], [_untimed(row) for row in group.untimed]
        )
        yield ""
    if each.cautions:
        for warning, numbers in each.cautions[:_MOST_CAUTIONS]:
            yield f"- {'Run' if len(numbers) == 1 else 'Runs'} {', '.join(map(str, numbers))}: {_plain(warning)}"
        if len(each.cautions) > _MOST_CAUTIONS:
            yield f"- and {len(each.cautions) - _MOST_CAUTIONS} more, which the page and the JSON tell"
        yield ""


def _section(section: Section) -> Iterator[str]:
    yield f"**{_plain(section.headline)}** {_plain(' '.join(section.reasons))}".rstrip()
    yield ""
    if not section.table.lines:
        return
    columns = [(index, column) for index, column in enumerate(section.table.columns) if column.name not in _LEFT_OUT]
    compared = {
        each.row.number: each.figures + (" (no interval)" if each.ratio is not None and each.low is None else "")
        for each in section.comparisons
    }
    headings = ["#", "Run", *(_UNITS.get(column.name, column.heading) for _, column in columns)]
    lines = []
    for row, cells in section.table.lines:
        line = [str(row.number), _name(row, section), *(_cell(cells[index], column) for index, column in columns)]
        if compared:
            line.append("reference" if row is section.reference else compared.get(row.number, DASH))
        lines.append(line)
    if compared and section.reference is not None:
        headings.append(f"Against {section.reference.number}")
    yield from _rows(headings, lines)
    yield ""


def _name(row: Row, section: Section) -> str:
    name = f"{_plain(row.name)} ({_plain(row.detail)})" + (f" by {_plain(row.source)}" if row.source else "")
    name += " ◆" if row.number in section.front.numbers and section.front.statement else ""
    return f"**{name}**" if row is section.choice else name


def _cell(cell: Cell, column: Column) -> str:
    told = cell.sub if column.name == "energy" or cell.value is None else ""
    return cell.text + (f" ({told})" if told else "")


def _untimed(row: Row) -> list[str]:
    name = f"{_plain(row.name)} ({_plain(row.detail)})"
    return [
        str(row.number),
        name,
        row.evidence,
        shown(row.value("accuracy"), "share"),
        shown(row.value("size"), "bytes"),
    ]


def _rows(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _line(headings)
    yield _line(["---:", "---", *["---:"] * (len(headings) - 2)])
    for line in lines:
        yield _line(line)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return a text as Markdown that shows it as it is: names come from bundles, which may come from anyone."""
    words = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    # GitHub links #1, @someone and https://… in what is already rendered, where a backslash is gone. A word joiner,
    # which nobody sees, keeps them apart.
    return _LINKED.sub("\\g<0>\u2060", words)
