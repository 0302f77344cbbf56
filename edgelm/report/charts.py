"""Charts as SVG, from pure functions.

Every horizontal position is a percentage of the width, and the text keeps its size: a chart fits a phone and a desk
without being scaled. Colours come from classes that the page's style sheet knows in light and dark. Each chart carries
its content as a label for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Point", "axis_svg", "parts_svg", "scatter_svg", "strip_svg", "time_axis"]

_BINS = 96
_STRIP_HEIGHT = 54
_HISTOGRAM_HEIGHT = 34
_LOG_FROM_RATIO = 20.0
_TICKS = 5
_SCATTER_HEIGHT = 340
_NOMINAL_WIDTH = 640  # only to keep the numbers of a scatter chart apart; the real width is the reader's


@dataclass(frozen=True)
class Axis:
    """A scale from values to percent of the width.

    Attributes:
        low: The value at 0 %.
        high: The value at 100 %.
        log: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Return where a value lies, in percent, kept within the axis."""
        low, high, here = (self._scale(each) for each in (self.low, self.high, max(value, self.low)))
        return 100 * min(1.0, max(0.0, (here - low) / (high - low)))

    def value(self, percent: float) -> float:
        """Return the value at a percentage."""
        low, high = self._scale(self.low), self._scale(self.high)
        here = low + (high - low) * percent / 100
        return math.exp(here) if self.log else here

    def ticks(self) -> list[float]:
        """Return about five round values within the axis."""
        if not self.log:
            step = _round_step((self.high - self.low) / _TICKS)
            first = math.ceil(self.low / step)
            return [index * step for index in range(first, math.floor(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [factor * 10.0**decade for decade in decades for factor in factors]
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) <= _TICKS + 2:
                break
        return inside

    def _scale(self, value: float) -> float:
        return math.log(value) if self.log else value


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
    """

    number: int
    label: str
    x: float
    y: float
    area: float | None
    chosen: bool


def time_axis(lows: Sequence[float], highs: Sequence[float]) -> Axis:
    """Return an axis for times that are above 0: from 0, or logarithmic where they differ more than 20-fold."""
    low, high = min(lows), max(highs)
    if high / low > _LOG_FROM_RATIO:
        return Axis(low * 0.85, high * 1.15, log=True)
    return Axis(0.0, high * 1.06, log=False)


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
        text = f"{_number(tick * factor)} {escape(unit)}"
        parts.append(f'<text x="{place:.2f}%" y="14" text-anchor="{anchor}">{text}</text>')
    return "".join([*parts, "</svg>"])


def strip_svg(latencies: Sequence[float], box: tuple[float, float, float, float], axis: Axis, label: str) -> str:
    """Return the distribution of one run: a histogram, and below it a box.

    Args:
        latencies: Seconds, at least one; those beyond the axis are not drawn.
        box: First quartile, median, third quartile, and the end of the whisker.
        axis: Shared by all strips of a chart.
        label: Read out.
    """
    counts = [0] * _BINS
    for value in latencies:
        if value <= axis.high:
            counts[min(_BINS - 1, int(axis.at(value) / 100 * _BINS))] += 1
    peak = max(counts) or 1
    width = 100 / _BINS
    parts = [_open("strip", _STRIP_HEIGHT, label), _grid(axis, _STRIP_HEIGHT)]
    for index, count in enumerate(counts):
        if count:
            height = max(1.5, _HISTOGRAM_HEIGHT * count / peak)
            parts.append(
                f'<rect class="bin" x="{index * width:.2f}%" y="{_HISTOGRAM_HEIGHT - height:.1f}" '
                f'width="{width * 0.86:.2f}%" height="{height:.1f}"/>'
            )
    low, median, high, end = (axis.at(value) for value in box)
    middle = _HISTOGRAM_HEIGHT + 10
    parts += [
        f'<line class="whisker" x1="{axis.at(min(latencies)):.2f}%" x2="{end:.2f}%" y1="{middle}" y2="{middle}"/>',
        f'<rect class="box" x="{low:.2f}%" y="{middle - 5}" width="{max(0.4, high - low):.2f}%" height="10"/>',
        f'<line class="median" x1="{median:.2f}%" x2="{median:.2f}%" y1="{middle - 8}" y2="{middle + 8}"/>',
        f'<line class="whisker" x1="{end:.2f}%" x2="{end:.2f}%" y1="{middle - 5}" y2="{middle + 5}"/>',
    ]
    return "".join([*parts, "</svg>"])


def parts_svg(parts_s: Sequence[tuple[str, float]], axis: Axis, label: str) -> str:
    """Return one bar made of parts, such as tokenising and running.

    Args:
        parts_s: Class of each part in the style sheet, and its seconds.
        axis: Shared by all bars of a chart; it starts at 0.
        label: Read out.
    """
    drawn = [_open("parts", 18, label)]
    left = 0.0
    for name, seconds in parts_s:
        right = left + seconds
        width = axis.at(right) - axis.at(left)
        drawn.append(f'<rect class="{name}" x="{axis.at(left):.2f}%" y="2" width="{width:.2f}%" height="14"/>')
        left = right
    return "".join([*drawn, "</svg>"])


def scatter_svg(points: Sequence[Point], x_axis: Axis, y_axis: Axis, units: tuple[str, str, float], label: str) -> str:
    """Return points by two measures, the area of each standing for a third.

    Args:
        points: At least one.
        x_axis: Of a time in seconds, drawn in milliseconds.
        y_axis: Of the other measure.
        units: Title of the horizontal axis, of the vertical one, and the factor to the unit in the latter.
        label: Read out.
    """
    x_title, y_title, y_factor = units
    top, bottom = 30, _SCATTER_HEIGHT - 46
    parts = [_open("scatter", _SCATTER_HEIGHT, label)]
    for tick in y_axis.ticks():
        y = _down(y_axis, tick, top, bottom)
        parts.append(f'<line class="grid" x1="9%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="8%" y="{y + 4:.1f}" text-anchor="end">{_number(tick * y_factor)}</text>')
    for tick in x_axis.ticks():
        x = _across(x_axis, tick)
        parts.append(f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.2f}%" y="{bottom + 18}" text-anchor="middle">{_number(tick * 1e3)}</text>')
    parts.append(f'<text class="title" x="0" y="14">{escape(y_title)}</text>')
    parts.append(f'<text class="title" x="100%" y="{bottom + 38}" text-anchor="end">{escape(x_title)}</text>')
    largest = max((point.area or 0.0 for point in points), default=0.0)
    placed: list[tuple[float, float]] = []
    # The large ones first, so that a small one is never hidden beneath.
    for point in sorted(points, key=lambda point: -(point.area or 0.0)):
        radius = 9.0 if point.area is None or largest == 0 else 5 + 19 * math.sqrt(point.area / largest)
        x, y = _across(x_axis, point.x), _down(y_axis, point.y, top, bottom)
        shift_x, shift_y = _free_place(x, y, radius, placed)
        kind = "dot chosen" if point.chosen else "dot"
        parts.append(
            f'<g><title>{escape(point.label)}</title><circle class="{kind}" cx="{x:.2f}%" cy="{y:.1f}" r="{radius:.1f}"/>'
            f'<text class="number" x="{x:.2f}%" y="{y:.1f}" dx="{shift_x:.1f}" dy="{shift_y + 4:.1f}" '
            f'text-anchor="middle">{point.number}</text></g>'
        )
    return "".join([*parts, "</svg>"])


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


def _across(axis: Axis, value: float) -> float:
    # The numbers of the vertical axis need the left tenth, and a dot at the edge needs its radius.
    return 10 + 0.86 * axis.at(value)


def _down(axis: Axis, value: float, top: float, bottom: float) -> float:
    return bottom - (bottom - top) * axis.at(value) / 100


def _grid(axis: Axis, height: int) -> str:
    return "".join(
        f'<line class="grid" x1="{axis.at(tick):.2f}%" x2="{axis.at(tick):.2f}%" y1="0" y2="{height}"/>'
        for tick in axis.ticks()
    )


def _open(kind: str, height: int, label: str) -> str:
    return f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{escape(label)}">'


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _number(value: float) -> str:
    return f"{value:,.6g}"
