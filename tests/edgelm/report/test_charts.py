from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.report.axes import Axis, span_axis, time_axis
from edgelm.report.charts import Point, Scale, axis_svg, parts_svg, scatter_svg
from edgelm.report.lines import Line, lines_svg

times = st.lists(st.floats(1e-6, 100), min_size=1, max_size=50)
HOSTILE = "<script>alert(1)</script>\"'&"


@given(times)
def test_axis_holds_every_time_and_has_ticks(values: list[float]) -> None:
    axis = time_axis(values, values)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] < 100
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(axis.low <= tick <= axis.high for tick in ticks)


@given(st.floats(0, 100), st.booleans())
def test_value_undoes_at(percent: float, log: bool) -> None:
    axis = Axis(0.001, 5.0, log=log)
    assert axis.at(axis.value(percent)) == pytest.approx(percent, abs=1e-6)


def test_far_apart_times_are_logarithmic() -> None:
    assert time_axis([0.001], [0.03]).log
    assert not time_axis([0.002], [0.03]).log


@given(st.lists(st.floats(-20, 120), min_size=1, max_size=20))
def test_a_span_holds_its_values_and_is_not_filled_by_noise(values: list[float]) -> None:
    axis = span_axis(values, least_span=2)
    assert axis.low <= min(values) <= max(values) <= axis.high
    # Rounding of the two ends, of values up to 120: a few units in the last place.
    assert axis.high - axis.low >= 2 - 1e-9
    assert axis.ticks()


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 60), st.floats(1e-4, 1)), min_size=1, max_size=9), min_size=1, max_size=12)
)
def test_lines_stay_in_their_plane_and_keep_their_order(drawn: list[list[tuple[float, float]]]) -> None:
    lines = [Line((number,), HOSTILE, sorted(points), number if number < 8 else None, dots=True, steps=number % 2 == 0)
             for number, points in enumerate(drawn)]  # fmt: skip
    svg = lines_svg(lines, Scale(Axis(0, 60, log=False), HOSTILE, 1), Scale(Axis(0, 1, log=False), "y", 1e3), HOSTILE)
    root = ElementTree.fromstring(svg)  # noqa: S314
    paths = [each for each in root.iter("path") if "dots" not in (each.get("class") or "")]
    assert [each.get("data-runs") for each in paths] == [str(number) for number in range(len(lines))]
    for path, line in zip(paths, lines, strict=True):
        assert ("off" in (path.get("class") or "").split()) == (line.series is None)
        places = [tuple(map(int, place.split())) for place in (path.get("d") or "")[1:].split("L")]
        assert all(0 <= value <= 1000 for place in places for value in place)
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        # The last point is where its values are: 1000 units for the axis, half a unit of rounding.
        assert abs(places[-1][0] - line.points[-1][0] / 60 * 1000) <= 0.51


def test_parts_add_up() -> None:
    svg = parts_svg([("tokenize", 0.001), ("run", 0.003)], Axis(0, 0.008, log=False), HOSTILE)
    first, second = ElementTree.fromstring(svg).iter("rect")  # noqa: S314
    assert (first.get("x"), first.get("width")) == ("0.00%", "12.50%")
    assert (second.get("x"), second.get("width")) == ("12.50%", "37.50%")


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(1e-4, 1), st.floats(0, 1), st.floats(1, 1e9)), min_size=1, max_size=60))
def test_scatter_has_every_point(values: list[tuple[float, float, float]]) -> None:
    points = [
        Point(number, HOSTILE, x, y, area, chosen=False, front=number == 0)
        for number, (x, y, area) in enumerate(values)
    ]
    axis = time_axis([x for x, _, _ in values], [x for x, _, _ in values])
    svg = scatter_svg(points, Scale(axis, HOSTILE, 1e3), Scale(Axis(0, 1, log=False), HOSTILE, 100), HOSTILE)
    root = ElementTree.fromstring(svg)  # noqa: S314
    assert len(list(root.iter("circle"))) == len(values)
    # Of many, only those on the front are numbered: forty numbers are all that can be read.
    numbered = range(len(values)) if len(values) <= 40 else range(1)
    assert sorted(each.text or "" for each in root.iter("text") if each.get("class") == "number") == sorted(
        str(number) for number in numbered
    )


def test_axis_labels_are_escaped() -> None:
    ElementTree.fromstring(axis_svg(Axis(0, 1, log=False), HOSTILE, 1e3))  # noqa: S314
