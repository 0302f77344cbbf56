"""The charts of points: what speed, accuracy, energy and size cost each other, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from edgelm.report.axes import Axis, time_axis
from edgelm.report.charts import Point, Scale, scatter_svg
from edgelm.report.drawings import Drawing
from edgelm.report.figures import FIELDS
from edgelm.report.pareto import Front, not_dominated
from edgelm.report.quantities import shown
from edgelm.report.rows import Row

__all__ = ["scatter_drawings"]

# Of each figure: its title on an axis, the factor to the unit there, what the better end means, whether more is better.
_WORDS = {
    "p50": ("p50, ms", 1e3, "left is faster", False),
    "decode_tokens_per_s": ("Tokens written a second", 1.0, "right is faster", True),
    "accuracy": ("Accuracy, %", 100.0, "above is more accurate", True),
    "size": ("File, MB", 1e-6, "below is smaller", False),
    "energy": ("Energy of an answer, mJ", 1e3, "less energy", False),
    "energy_per_token": ("Energy of a token, mJ", 1e3, "less energy", False),
}


def scatter_drawings(
    rows: Sequence[Row], choice: Row | None, front: Front, *, accuracies_comparable: bool
) -> tuple[Drawing, ...]:
    """Return speed against accuracy, energy against accuracy and speed against energy; size stands in for accuracy.

    Only pairs that two runs have at least are drawn.
    """
    speed = "decode_tokens_per_s" if any(row.generates for row in rows) else "p50"
    joules = "energy_per_token" if any(row.generates for row in rows) else "energy"
    quality = "accuracy" if accuracies_comparable and _known(rows, "accuracy") > 1 else "size"
    pairs = [
        (speed, quality, "What speed costs"),
        (joules, quality, "What an answer costs"),
        (speed, joules, "Speed and energy"),
    ]
    drawn = (_scatter(rows, choice, front, x, y, title) for x, y, title in pairs)
    return tuple(drawing for drawing in drawn if drawing is not None)


def _scatter(
    rows: Sequence[Row], choice: Row | None, front: Front, x_name: str, y_name: str, title: str
) -> Drawing | None:
    found = [(row, row.value(x_name), row.value(y_name)) for row in rows]
    known = [
        (row, x, y)
        for row, x, y in found
        if x is not None and y is not None and x > 0 and (y > 0 or y_name == "accuracy")
    ]
    if len(known) < 2:
        return None
    (x_title, x_factor, x_words, x_more), (y_title, y_factor, y_words, y_more) = _WORDS[x_name], _WORDS[y_name]
    xs, ys = [x for _, x, _ in known], [y for _, _, y in known]
    if y_name == "accuracy":
        pad = max(0.005, 0.15 * (max(ys) - min(ys)))
        y_axis = Axis(max(0.0, min(ys) - pad), min(1.0, max(ys) + pad), log=False)
    else:
        y_axis = time_axis(ys, ys)
    area = "size" if y_name != "size" else None
    points = [
        Point(
            row.number,
            f"#{row.number} {row.name}: {_figure(row, x_name)}, {_figure(row, y_name)}, {_figure(row, 'size')}",
            x,
            y,
            row.value(area) if area else None,
            row is choice,
            row.number in front.numbers,
        )
        for row, x, y in known
    ]
    words = "; ".join(
        (
            "left is " + x_words if x_words == "less energy" else x_words,
            "below is " + y_words if y_words == "less energy" else y_words,
        )
    )
    area_words = "; the area is the file’s size" if area else ""
    text = f"{words[0].upper()}{words[1:]}{area_words}. The line joins what no other run beats in both."
    if len(known) < len(rows):
        text += f" {len(rows) - len(known)} of {len(rows)} runs lack one of the two."
    line = _staircase(xs, ys, more=(x_more, y_more))
    best = ", ".join(f"#{point.number}" for point in points if point.front)
    label = f"{title}: {x_title} against {y_title}. On the front: {best or 'none'}."
    svg = scatter_svg(
        points, Scale(time_axis(xs, xs), x_title, x_factor), Scale(y_axis, y_title, y_factor), label, line
    )
    return Drawing(title, text, Markup(svg))  # noqa: S704


def _staircase(xs: Sequence[float], ys: Sequence[float], *, more: tuple[bool, bool]) -> list[tuple[float, float]]:
    """Return the corners of the line below which no run lies, in both respects that are drawn."""
    signs = [-1.0 if each else 1.0 for each in more]
    kept = not_dominated([(signs[0] * x, signs[1] * y) for x, y in zip(xs, ys, strict=True)])
    points = sorted(
        {(x, y) for x, y, keep in zip(xs, ys, kept, strict=True) if keep}, key=lambda point: signs[0] * point[0]
    )
    corners = points[:1]
    for before, here in pairwise(points):
        corners += [(here[0], before[1]), here]
    return corners


def _figure(row: Row, name: str) -> str:
    return shown(row.value(name), FIELDS[name].dimension)


def _known(rows: Sequence[Row], name: str) -> int:
    return sum(row.value(name) is not None for row in rows)
