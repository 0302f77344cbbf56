"""The charts of the runs of one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from markupsafe import Markup

from edgelm.bench import GenerationRun, Run
from edgelm.report.axes import Axis, span_axis, time_axis
from edgelm.report.charts import Scale, axis_svg, parts_svg
from edgelm.report.figures import FIELDS
from edgelm.report.lines import MOST_SHOWN, Line, lines_svg
from edgelm.report.numbers import latency
from edgelm.report.pareto import Front
from edgelm.report.quantities import shown
from edgelm.report.rows import Row
from edgelm.report.series import distribution, moments
from edgelm.report.writing import by_depth

__all__ = [
    "Drawing",
    "Strip",
    "depth_drawings",
    "distribution_drawing",
    "moment_drawings",
    "part_strips",
    "shown_first",
]

_LOW_PANEL = 190
_SHARE_AXIS = Axis(0.0, 1.0, log=False)


@dataclass(frozen=True)
class Drawing:
    """A chart.

    Attributes:
        title: What it is.
        note: How to read it.
        svg: The chart.
        keys: The colour of each line and its name, where they are not those of the runs around it.
    """

    title: str
    note: str
    svg: Markup
    keys: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Strip:
    """A run's line in a chart of strips: the run, its drawing and its figures."""

    row: Row
    svg: Markup
    text: str


def shown_first(rows: Sequence[Row], choice: Row | None, front: Front) -> dict[int, int]:
    """Return the runs whose lines are shown before the reader chooses, by number, with the colour of each.

    The one to ship, those on the front, then the fastest; at most `MOST_SHOWN`.
    """
    ordered = sorted(rows, key=lambda row: (row is not choice, row.number not in front.numbers))
    return {row.number: series for series, row in enumerate(ordered[:MOST_SHOWN])}


def distribution_drawing(rows: Sequence[Row], series: dict[int, int]) -> Drawing | None:
    """Return the distribution of the latencies; None where no run has any."""
    found = [(row, distribution(row.result.samples.latency_s)) for row in rows if isinstance(row.result, Run)]
    if not found:
        return None
    # To each p99, so that one outlier does not squeeze all the others.
    highs = [row.value("p99") or row.value("max") or points[-1][0] for row, points in found]
    axis = time_axis([points[0][0] for _, points in found], highs)
    lines = [
        Line((row.number,), f"#{row.number} {row.name}", _until(points, axis.high), series.get(row.number), steps=True)
        for row, points in found
    ]
    scale = "logarithmic " if axis.log else ""
    note = f"The share of a run’s queries answered within a time, on one {scale}axis. Left is faster, steep is steady."
    label = "Distribution of the latencies. " + _told(rows, series, ("p50", "p90", "p99"))
    svg = lines_svg(lines, Scale(axis, "Latency, ms", 1e3), Scale(_SHARE_AXIS, "Answered, %", 100), label)
    return Drawing("How the latencies spread", note, Markup(svg))  # noqa: S704 - lines.py escapes what it is given


def moment_drawings(rows: Sequence[Row], series: dict[int, int]) -> tuple[Drawing, ...]:
    """Return latency, temperature and clock over time, each where a run has it."""
    runs = [(row, moments(row.result)) for row in rows if isinstance(row.result, Run | GenerationRun)]
    # As long as those that are shown first: one that took an hour would squeeze the others into a corner.
    first = [found for row, found in runs if row.number in series]
    ends = [
        points[-1][0] for found in first for points in (found.latency_s, found.temperature_c, found.clock_hz) if points
    ]
    end = max(ends, default=0.0)
    if end <= 0:
        return ()
    x = Scale(Axis(0.0, end, log=False), "Since the measurement began, s", 1.0)
    word = "time of a token" if any(row.generates for row in rows) else "latency"
    panels = (
        (
            f"The {word}, over time",
            "Medians, one after the other.",
            "Median, ms",
            1e3,
            [(row, found.latency_s) for row, found in runs],
        ),
        (
            "Temperature, over time",
            "Of the hottest sensor.",
            "°C",
            1.0,
            [(row, found.temperature_c) for row, found in runs],
        ),
        ("Clock, over time", "Mean of the processors.", "GHz", 1e-9, [(row, found.clock_hz) for row, found in runs]),
    )
    drawn = []
    for title, note, unit, factor, lines in panels:
        until = [(row, tuple(point for point in points if point[0] <= end)) for row, points in lines]
        kept = [(row, points) for row, points in until if len(points) > 1]
        if not kept:
            continue
        values = [value for _, points in kept for _, value in points]
        axis = (
            time_axis([min(values)], [max(values)])
            if factor == 1e3
            else span_axis(values, least_span=2 / factor if factor == 1.0 else 2e8)
        )
        drawn_lines = [
            Line((row.number,), f"#{row.number} {row.name}", points, series.get(row.number)) for row, points in kept
        ]
        label = f"{title}: from {values[0] * factor:.3g} to {values[-1] * factor:.3g} {unit}."
        svg = lines_svg(drawn_lines, x, Scale(axis, unit, factor), label, height=_LOW_PANEL)
        drawn.append(Drawing(title, note, Markup(svg)))  # noqa: S704
    return tuple(drawn)


def depth_drawings(rows: Sequence[Row]) -> tuple[Drawing, ...]:
    """Return the tokens a second by the depth of the cache: written, and read."""
    drawn = []
    panels = (
        ("decode_tokens_per_s", "Writing, by depth", "Tokens written a second, by what the cache holds before."),
        ("prefill_tokens_per_s", "Reading, by depth", "Tokens of the prompt read a second."),
    )
    for name, title, note in panels:
        lines: list[Line] = []
        for depths in by_depth(rows):
            known = [(row.depth, row.value(name)) for row in depths.rows]
            points = [(float(depth), value) for depth, value in known if depth is not None and value is not None]
            if points:
                series = len(lines) if len(lines) < MOST_SHOWN else None
                lines.append(Line(tuple(row.number for row in depths.rows), depths.name, points, series, dots=True))
        if not lines:
            continue
        speeds = [value for line in lines for _, value in line.points]
        deepest = max(depth for line in lines for depth, _ in line.points)
        x = Scale(Axis(0.0, max(1.0, deepest) * 1.04, log=False), "Depth, tokens", 1.0)
        y = Scale(time_axis([min(speeds)], [max(speeds)]), "Tokens/s", 1.0)
        told = "; ".join(
            f"{line.label}: " + ", ".join(f"{value:.3g} at {depth:.0f}" for depth, value in line.points)
            for line in lines[:MOST_SHOWN]
        )
        svg = lines_svg(lines, x, y, f"{title}. {told}.", height=260)
        keys = tuple((line.series, line.label) for line in lines if line.series is not None)
        drawn.append(Drawing(title, note, Markup(svg), keys))  # noqa: S704
    return tuple(drawn)


def part_strips(rows: Sequence[Row], series: dict[int, int]) -> tuple[str, tuple[Strip, ...]]:
    """Return where the time of the runs goes that are shown first: an axis, and a bar for each."""
    runs = [
        (row, row.result)
        for row in rows
        if row.number in series
        and isinstance(row.result, Run)
        and row.result.samples.tokenize_s
        and row.result.samples.run_s
    ]
    if not runs:
        return "", ()
    # Parts add up, so their axis starts at 0 even where that of the distributions is logarithmic.
    axis = Axis(0.0, max(run.results.mean_s for _, run in runs) * 1.02, log=False)
    return Markup(axis_svg(axis, "ms", 1e3)), tuple(_strip(row, run, axis) for row, run in runs)  # noqa: S704


def _strip(row: Row, run: Run, axis: Axis) -> Strip:
    tokenize, inside = fmean(run.samples.tokenize_s or (0.0,)), fmean(run.samples.run_s or (0.0,))
    rest = max(0.0, run.results.mean_s - tokenize - inside)
    text = f"tokenise {latency(tokenize)} · run {latency(inside)} · rest {latency(rest)}"
    parts = [("tokenize", tokenize), ("run", inside), ("rest", rest)]
    return Strip(row, Markup(parts_svg(parts, axis, f"#{row.number} {row.name}: {text}")), text)  # noqa: S704


def _until(points: Sequence[tuple[float, float]], most: float) -> list[tuple[float, float]]:
    kept = [point for point in points if point[0] <= most]
    return kept or list(points[:1])


def _told(rows: Sequence[Row], series: dict[int, int], names: Sequence[str]) -> str:
    told = (
        f"#{row.number} {row.name}: " + ", ".join(f"{name} {_figure(row, name)}" for name in names)
        for row in rows
        if row.number in series
    )
    return "; ".join(chain(told)) + "."


def _figure(row: Row, name: str) -> str:
    return shown(row.value(name), FIELDS[name].dimension)
