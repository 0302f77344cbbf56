"""Lines as SVG: distributions, a run over time, speed by depth.

All runs of a machine are in a chart, and a few are shown. The others are in the page without being drawn, and the script
shows them when the reader asks: a class is all that changes, so a chart of a thousand runs costs what one of eight does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from edgelm.report.charts import Scale, frame, inner

__all__ = ["MOST_SHOWN", "Line", "lines_svg"]

MOST_SHOWN = 8
"""Lines in a chart at once: more colours than these cannot be told apart."""


@dataclass(frozen=True)
class Line:
    """A line.

    Attributes:
        numbers: Of the runs that it is of.
        label: Read out.
        points: In rising order of the first value.
        series: Its colour and dashes, from 0 to 7; None where it is not shown at first.
        dots: Whether each point is marked.
        steps: Whether the value holds until the next point.
    """

    numbers: tuple[int, ...]
    label: str
    points: Sequence[tuple[float, float]]
    series: int | None
    dots: bool = False
    steps: bool = False


def lines_svg(lines: Sequence[Line], x: Scale, y: Scale, label: str, *, height: int = 300) -> str:
    """Return a chart of lines.

    Args:
        lines: At least one.
        x: From left to right.
        y: From the bottom up.
        label: Read out.
        height: In pixels.
    """
    parts = [*frame(x, y, height, label, "plot"), inner(height)]
    for line in lines:
        kind = "line off" if line.series is None else f"line s{line.series}"
        numbers = " ".join(map(str, line.numbers))
        title = f"<title>{escape(line.label)}</title>"
        parts.append(f'<path data-runs="{numbers}" class="{kind}" d="{_path(line, x, y)}">{title}</path>')
        if line.dots:
            # A line of no length with round ends: a circle would be stretched along with the plane.
            dots = "".join(f"M{_at(point, x, y)}h0" for point in line.points)
            parts.append(f'<path data-runs="{numbers}" class="{kind} dots" d="{dots}"/>')
    return "".join([*parts, "</svg></svg>"])


def _path(line: Line, x: Scale, y: Scale) -> str:
    places = [_at(point, x, y) for point in line.points]
    if not line.steps:
        return "M" + "L".join(places)
    steps = [places[0]]
    for before, here in pairwise(places):
        steps += [f"{here.split()[0]} {before.split()[1]}", here]
    return "M" + "L".join(dict.fromkeys(steps))


def _at(point: tuple[float, float], x: Scale, y: Scale) -> str:
    return f"{x.axis.at(point[0]) * 10:.0f} {1000 - y.axis.at(point[1]) * 10:.0f}"
