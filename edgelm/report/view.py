"""What the page shows of a group of runs: its charts, drawn, and its texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from edgelm.bench import Run
from edgelm.bench.statistics import percentile
from edgelm.report.charts import Axis, Point, axis_svg, parts_svg, scatter_svg, strip_svg, time_axis
from edgelm.report.numbers import latency, percent, size
from edgelm.report.rows import Group, Row, cautions_of
from edgelm.report.verdict import Verdict, comparable_accuracy, judge

__all__ = ["Charts", "Drawn", "GroupView", "view"]

_WITHIN_FIGURE = re.compile(r"(?<=[a-z]) (?=[0-9])|(?<=[0-9]) (?=[a-zµ%])|(?<=p[0-9]{2}) ")


@dataclass(frozen=True)
class Drawn:
    """A run's line in a chart.

    Attributes:
        row: The run.
        svg: Its drawing.
        text: Its figures.
    """

    row: Row
    svg: Markup
    text: str


@dataclass(frozen=True)
class Charts:
    """The charts of one machine; empty or None where there is nothing to draw.

    Attributes:
        strips_axis: Above the distributions.
        strips: The distribution of each run.
        strips_log: Whether their axis is logarithmic.
        parts_axis: Above the parts.
        parts: Where the time of each run goes.
        scatter: Speed against accuracy, or against size.
        scatter_text: What it shows.
    """

    strips_axis: Markup
    strips: tuple[Drawn, ...]
    strips_log: bool
    parts_axis: Markup
    parts: tuple[Drawn, ...]
    scatter: Markup | None
    scatter_text: str


@dataclass(frozen=True)
class GroupView:
    """A machine with its runs.

    Attributes:
        group: The runs.
        verdict: Which to ship.
        cautions: What must be known to believe the numbers, with the numbers of the runs that it is about.
        charts: None where nothing was timed.
        deadline: Whether any run had one.
    """

    group: Group
    verdict: Verdict
    cautions: tuple[tuple[str, tuple[int, ...]], ...]
    charts: Charts | None
    deadline: bool


def view(group: Group) -> GroupView:
    """Return what the page shows of one machine."""
    verdict = judge(group)
    charts = _charts(group, verdict) if group.timed else None
    deadline = any(row.run.settings.deadline_s is not None for row in group.rows)
    return GroupView(group, verdict, cautions_of(group.rows), charts, deadline)


def _charts(group: Group, verdict: Verdict) -> Charts:
    rows = group.timed
    axis = time_axis([row.run.results.min_s for row in rows], [_end(row.run) for row in rows])
    parts = tuple(row for row in rows if row.run.samples.tokenize_s and row.run.samples.run_s)
    # Parts add up, so their axis starts at 0 even where the one above is logarithmic.
    parts_axis = Axis(0.0, max((row.run.results.mean_s for row in parts), default=1.0) * 1.02, log=False)
    scatter, text = _scatter(rows, verdict)
    return Charts(
        strips_axis=Markup(axis_svg(axis, "ms", 1e3)),  # noqa: S704 - the functions in charts.py escape what they are given
        strips=tuple(_strip(row, axis) for row in rows),
        strips_log=axis.log,
        parts_axis=Markup(axis_svg(parts_axis, "ms", 1e3)),  # noqa: S704
        parts=tuple(_parts(row, parts_axis) for row in parts),
        scatter=None if scatter is None else Markup(scatter),  # noqa: S704
        scatter_text=text,
    )


def _end(run: Run) -> float:
    """Return how far a run's distribution is drawn: to its p99, so that one outlier does not squeeze all the others."""
    return run.results.max_s if run.results.p99_s is None else run.results.p99_s


def _strip(row: Row, axis: Axis) -> Drawn:
    results = row.run.results
    ordered = sorted(row.run.samples.latency_s)
    quartiles = [percentile(ordered, per_mille) for per_mille in (250, 500, 750)]
    beyond = sum(value > axis.high for value in ordered)
    figures = (("p50", results.p50_s), ("p90", results.p90_s), ("p99", results.p99_s))
    text = " · ".join(f"{name} {latency(value)}" for name, value in figures)
    if beyond:
        text += f" · {beyond:,} beyond, up to {latency(results.max_s)}"
    label = f"#{row.number} {row.name}: {text}"
    svg = strip_svg(ordered, (quartiles[0], quartiles[1], quartiles[2], _end(row.run)), axis, label)
    return Drawn(row, Markup(svg), _together(text))  # noqa: S704


def _parts(row: Row, axis: Axis) -> Drawn:
    samples, mean = row.run.samples, row.run.results.mean_s
    tokenize, run = fmean(samples.tokenize_s or (0.0,)), fmean(samples.run_s or (0.0,))
    rest = max(0.0, mean - tokenize - run)
    text = f"tokenise {latency(tokenize)} · run {latency(run)} · rest {latency(rest)}"
    svg = parts_svg([("tokenize", tokenize), ("run", run), ("rest", rest)], axis, f"#{row.number} {row.name}: {text}")
    return Drawn(row, Markup(svg), _together(text))  # noqa: S704


def _scatter(rows: tuple[Row, ...], verdict: Verdict) -> tuple[str | None, str]:
    """Return speed against accuracy with size as area; against size where accuracy is not known or not comparable."""
    if len(rows) < 2:
        return None, ""
    known = tuple(row for row in rows if row.run.bundle.accuracy is not None)
    p50s = [row.run.results.p50_s for row in rows]
    x_axis = time_axis(p50s, p50s)
    if len(known) < 2 or not comparable_accuracy(known):
        sizes = [float(row.run.bundle.size_bytes) for row in rows]
        points = [_point(row, float(row.run.bundle.size_bytes), None, verdict) for row in rows]
        text = "Left is faster, below is smaller."
        y_axis = time_axis(sizes, sizes)
        return scatter_svg(points, x_axis, y_axis, ("p50, ms", "File, MB", 1e-6), f"Speed against size. {text}"), text
    p50s = [row.run.results.p50_s for row in known]
    accuracies = [row.run.bundle.accuracy.artifact for row in known if row.run.bundle.accuracy]
    pad = max(0.005, 0.15 * (max(accuracies) - min(accuracies)))
    y_axis = Axis(max(0.0, min(accuracies) - pad), min(1.0, max(accuracies) + pad), log=False)
    points = [
        _point(row, row.run.bundle.accuracy.artifact, float(row.run.bundle.size_bytes), verdict)
        for row in known
        if row.run.bundle.accuracy
    ]
    text = "Left is faster, above is more accurate, and the area is the file's size."
    left_out = len(rows) - len(known)
    if left_out:
        text += f" {left_out} without a known accuracy left out."
    x_axis = time_axis(p50s, p50s)
    return scatter_svg(points, x_axis, y_axis, ("p50, ms", "Accuracy, %", 100), f"Speed against accuracy. {text}"), text


def _point(row: Row, y: float, area: float | None, verdict: Verdict) -> Point:
    run = row.run
    accuracy = "" if run.bundle.accuracy is None else f", {percent(run.bundle.accuracy.artifact)} accurate"
    label = f"#{row.number} {row.name}: {latency(run.results.p50_s)}, {size(run.bundle.size_bytes)}{accuracy}"
    return Point(row.number, label, run.results.p50_s, y, area, row is verdict.choice)


def _together(text: str) -> str:
    """Return a text that breaks between its figures only, not between a number and its unit."""
    return _WITHIN_FIGURE.sub("\u00a0", text)
