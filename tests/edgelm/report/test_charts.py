from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.report.charts import Axis, Point, axis_svg, parts_svg, scatter_svg, strip_svg, time_axis

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


@given(times)
def test_strip_draws_every_query_within_the_axis(values: list[float]) -> None:
    axis = time_axis([min(values)], [max(values)])
    middle = sorted(values)[len(values) // 2]
    root = ElementTree.fromstring(strip_svg(values, (middle, middle, middle, max(values)), axis, HOSTILE))  # noqa: S314
    assert root.get("aria-label") == HOSTILE
    bins = [each for each in root.iter("rect") if each.get("class") == "bin"]
    assert 1 <= len(bins) <= len(values)
    for each in root.iter():
        for name in ("x", "x1", "x2"):
            if each.get(name):
                assert 0 <= float((each.get(name) or "").rstrip("%")) <= 100


def test_parts_add_up() -> None:
    svg = parts_svg([("tokenize", 0.001), ("run", 0.003)], Axis(0, 0.008, log=False), HOSTILE)
    first, second = ElementTree.fromstring(svg).iter("rect")  # noqa: S314
    assert (first.get("x"), first.get("width")) == ("0.00%", "12.50%")
    assert (second.get("x"), second.get("width")) == ("12.50%", "37.50%")


@given(st.lists(st.tuples(st.floats(1e-4, 1), st.floats(0, 1), st.floats(1, 1e9)), min_size=1, max_size=60))
def test_scatter_has_every_point(values: list[tuple[float, float, float]]) -> None:
    points = [Point(number, HOSTILE, x, y, area, chosen=False) for number, (x, y, area) in enumerate(values)]
    axis = time_axis([x for x, _, _ in values], [x for x, _, _ in values])
    svg = scatter_svg(points, axis, Axis(0, 1, log=False), (HOSTILE, HOSTILE, 100), HOSTILE)
    root = ElementTree.fromstring(svg)  # noqa: S314
    assert len(list(root.iter("circle"))) == len(values)
    assert sorted(each.text for each in root.iter("text") if each.get("class") == "number") == sorted(
        str(number) for number in range(len(values))
    )


def test_axis_labels_are_escaped() -> None:
    ElementTree.fromstring(axis_svg(Axis(0, 1, log=False), HOSTILE, 1e3))  # noqa: S314
