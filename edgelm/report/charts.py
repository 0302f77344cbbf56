"""Bars and points as SVG, from pure functions; `edgelm.report.lines` draws lines.

Every horizontal position is a percentage of the width, and the text keeps its size: a chart fits a phone and a desk
without being scaled. Colours come from classes that the page's style sheet knows in light and dark. Each chart carries
its content as a label for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgelm.report.axes import Axis, number

__all__ = ["Point", "Scale", "axis_svg", "frame", "inner", "parts_svg", "scatter_svg"]

_SCATTER_HEIGHT = 340
_TOP, _BELOW = 30, 46
_LEFT, _WIDTH = (
    10.0,
    86.0,
)  # percent: the numbers of the vertical axis need the left tenth, a dot at the edge its radius
_NOMINAL_WIDTH = 640  # only to keep the numbers of a scatter chart apart; the real width is the reader's
_MOST_NUMBERED = 40


@dataclass(frozen=True)
class Scale:
    """An axis with its words.

    Attributes:
        axis: From values to percent.
        title: With the unit.
        factor: From the axis' values to that unit.
    """

    axis: Axis
    title: str
    factor: float


@dataclass(frozen=True)
class Point:
    """A run in a scatter chart.

    Attributes:
        number: Written beside it.
        label: Read out.
        x: On the horizontal axis.
        y: On the vertical axis.
        area: Its area, in any unit; None for points that are all alike.
        chosen: Whether it is the one to ship.
        front: Whether it is on the Pareto front.
    """

    number: int
    label: str
    x: float
    y: float
    area: float | None
    chosen: bool
    front: bool


def axis_svg(axis: Axis, unit: str, factor: float) -> str:
    """Return the labels of an axis.

    Args:
        axis: Of the charts below it.
        unit: Written after each number.
        factor: From the axis' values to that unit.
    """
    parts = ['<svg class="axis" width="100%" height="22" role="presentation" aria-hidden="true">']
    for tick in axis.ticks():
        place = axis.at(tick)
        anchor = "start" if place < 6 else "end" if place > 94 else "middle"
        text = f"{number(tick * factor)} {escape(unit)}"
        parts.append(f'<text x="{place:.2f}%" y="14" text-anchor="{anchor}">{text}</text>')
    return "".join([*parts, "</svg>"])


def parts_svg(parts_s: Sequence[tuple[str, float]], axis: Axis, label: str) -> str:
    """Return one bar made of parts, such as tokenising and running.

    Args:
        parts_s: Class of each part in the style sheet, and its seconds.
        axis: Shared by all bars of a chart; it starts at 0.
        label: Read out.
    """
    drawn = [f'<svg class="parts" width="100%" height="18" role="img" aria-label="{escape(label)}">']
    left = 0.0
    for name, seconds in parts_s:
        right = left + seconds
        width = axis.at(right) - axis.at(left)
        drawn.append(f'<rect class="{name}" x="{axis.at(left):.2f}%" y="2" width="{width:.2f}%" height="14"/>')
        left = right
    return "".join([*drawn, "</svg>"])


def frame(x: Scale, y: Scale, height: int, label: str, kind: str) -> list[str]:
    """Return the beginning of a chart: its label, its grid, the numbers and titles of both axes.

    Args:
        x: From left to right.
        y: From the bottom up.
        height: Of the whole, in pixels.
        label: Read out.
        kind: Its class in the style sheet.
    """
    top, bottom = _TOP, height - _BELOW
    parts = [f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{escape(label)}">']
    for tick in y.axis.ticks():
        place = bottom - (bottom - top) * y.axis.at(tick) / 100
        parts.append(f'<line class="grid" x1="{_LEFT - 1:g}%" x2="100%" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 2:g}%" y="{place + 4:.1f}" text-anchor="end">{number(tick * y.factor)}</text>')
    for tick in x.axis.ticks():
        place = _LEFT + _WIDTH / 100 * x.axis.at(tick)
        parts.append(f'<line class="grid" x1="{place:.2f}%" x2="{place:.2f}%" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{place:.2f}%" y="{bottom + 18}" text-anchor="middle">{number(tick * x.factor)}</text>')
    parts.append(f'<text class="title" x="0" y="14">{escape(y.title)}</text>')
    parts.append(f'<text class="title" x="100%" y="{bottom + 38}" text-anchor="end">{escape(x.title)}</text>')
    return parts


def inner(height: int) -> str:
    """Return the opening tag of the plane of a `frame`: 1000 by 1000 from its upper left corner, stretched to it."""
    return (
        f'<svg x="{_LEFT:g}%" y="{_TOP}" width="{_WIDTH:g}%" height="{height - _BELOW - _TOP}" '
        f'viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
    )


def scatter_svg(
    points: Sequence[Point], x: Scale, y: Scale, label: str, front: Sequence[tuple[float, float]] = ()
) -> str:
    """Return points by two measures, the area of each standing for a third.

    Args:
        points: At least one. Of more than 40, only those on the front and the one to ship have their numbers.
        x: From left to right.
        y: From the bottom up.
        label: Read out.
        front: The corners of the line that marks the front.
    """
    parts = frame(x, y, _SCATTER_HEIGHT, label, "scatter")
    if len(front) > 1:
        corners = " ".join(f"{x.axis.at(one) * 10:.0f},{1000 - y.axis.at(other) * 10:.0f}" for one, other in front)
        parts.append(f'{inner(_SCATTER_HEIGHT)}<polyline class="front-line" points="{corners}"/></svg>')
    largest = max((point.area or 0.0 for point in points), default=0.0)
    few = len(points) <= _MOST_NUMBERED
    placed: list[tuple[float, float]] = []
    # The large ones first, so that a small one is never hidden beneath.
    for point in sorted(points, key=lambda point: (point.front, -(point.area or 0.0))):
        radius = 9.0 if point.area is None or largest == 0 else 5 + 19 * math.sqrt(point.area / largest)
        radius = radius if few else radius / 2
        across, down = _place(point, x.axis, y.axis)
        kind = "dot" + (" front" if point.front else "") + (" chosen" if point.chosen else "")
        drawn = (
            f'<g data-run="{point.number}"><title>{escape(point.label)}</title>'
            f'<circle class="{kind}" cx="{across:.2f}%" cy="{down:.1f}" r="{radius:.1f}"/>'
        )
        if few or point.front or point.chosen:
            shift_x, shift_y = _free_place(across, down, radius, placed)
            drawn += (
                f'<text class="number" x="{across:.2f}%" y="{down:.1f}" dx="{shift_x:.1f}" dy="{shift_y + 4:.1f}" '
                f'text-anchor="middle">{point.number}</text>'
            )
        parts.append(drawn + "</g>")
    return "".join([*parts, "</svg>"])


def _place(point: Point, x: Axis, y: Axis) -> tuple[float, float]:
    bottom = _SCATTER_HEIGHT - _BELOW
    return _LEFT + _WIDTH / 100 * x.at(point.x), bottom - (bottom - _TOP) * y.at(point.y) / 100


def _free_place(x: float, y: float, radius: float, placed: list[tuple[float, float]]) -> tuple[float, float]:
    """Return where to write a number: in the dot, else around it, where it is farthest from those written already."""
    away = radius + 9
    shifts = [(0.0, 0.0), (away, 0.0), (-away, 0.0), (0.0, -away), (0.0, away), (away, -away), (-away, away)]
    here = x / 100 * _NOMINAL_WIDTH

    def room(shift: tuple[float, float]) -> float:
        return min((math.dist((here + shift[0], y + shift[1]), other) for other in placed), default=math.inf)

    shift = next((shift for shift in shifts if room(shift) >= 18), max(shifts, key=room))
    placed.append((here + shift[0], y + shift[1]))
    return shift
