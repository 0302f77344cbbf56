"""The same for a pull request: one table, and what must be known to believe it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgelm.bench import Run
from edgelm.errors import InputError
from edgelm.report.numbers import DASH, digits, milliseconds, percent, size
from edgelm.report.rows import Group, Row, cautions_of, group_runs
from edgelm.report.verdict import judge

__all__ = ["render_markdown"]

_HEADINGS = ("#", "Run", "File", "Accuracy", "p50 ms", "p90 ms", "p99 ms", "Queries/s", "Peak memory", "Energy")
# What means something in the middle of a line; the rest of Markdown's signs, escaped, would only be hard to read.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")
_LINKED = re.compile(r"#|@|:(?=//)|www(?=\.)", re.IGNORECASE)


def render_markdown(runs: Sequence[Run]) -> str:
    """Return a compact table of the runs, a table for each machine.

    Raises:
        InputError: There is no run.
    """
    if not runs:
        raise InputError("There is no run to report on. Make one with: edgelm benchmark BUNDLE -o RUN.json")
    parts = [_group(group) for group in group_runs(runs)]
    legend = (
        "Latency from the text to the answer, tokenising included; percentiles are nearest ranks. "
        f"{DASH}: not measured, or too few queries (10 for p90, 100 for p99)."
    )
    return "\n".join([*parts, f"<sub>{legend}</sub>", ""])


def _group(group: Group) -> str:
    verdict = judge(group)
    lines = [
        f"### {_plain(group.title)}",
        "",
        f"**{_plain(verdict.headline)}** {_plain(' '.join(verdict.reasons))}",
        "",
    ]
    for statement in group.statements:
        lines += [f"> **Not the device's own numbers.** {_plain(statement)}", ""]
    lines += [_line(_HEADINGS), _line(["---:", "---", *["---:"] * (len(_HEADINGS) - 2)])]
    lines += [_line(_cells(row, chosen=row is verdict.choice)) for row in group.rows]
    lines.append("")
    notes = [
        f"- {'Run' if len(numbers) == 1 else 'Runs'} {', '.join(map(str, numbers))}: {_plain(warning)}"
        for warning, numbers in cautions_of(group.rows)
    ]
    return "\n".join([*lines, *notes, ""] if notes else lines)


def _cells(row: Row, *, chosen: bool) -> list[str]:
    run, results = row.run, row.run.results
    name = f"{_plain(row.name)} ({_plain(row.detail)})"
    accuracy = run.bundle.accuracy
    timings = [results.p50_s, results.p90_s, results.p99_s] if row.timed else [None] * 3
    return [
        str(row.number),
        f"**{name}**" if chosen else name,
        size(run.bundle.size_bytes),
        DASH if accuracy is None else percent(accuracy.artifact),
        *(milliseconds(value) for value in timings),
        digits(results.throughput_per_s) if row.timed else DASH,
        size(results.peak_memory_bytes),
        "not measured" if run.energy.per_inference_j is None else f"{digits(run.energy.per_inference_j * 1e3)} mJ",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return a text as Markdown that shows it as it is: names come from bundles, which may come from anyone."""
    words = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    # GitHub links #1, @someone and https://… in what is already rendered, where a backslash is gone. A word joiner,
    # which nobody sees, keeps them apart.
    return _LINKED.sub("\\g<0>\u2060", words)
