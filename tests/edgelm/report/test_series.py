from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_factory import make_generation_run, over_time
from run_factory import make_run, replaced

from edgelm.report.series import distribution, moments


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=400))
def test_a_distribution_is_numpys(values: list[float]) -> None:
    points = distribution(values)
    assert len(points) <= 80
    assert (points[0][0], points[-1]) == (min(values), (max(values), 1.0))
    for value, share in points:
        # NumPy's inverted_cdf is the nearest rank; half a rank lower, so that rounding of the share cannot reach the next.
        assert value == np.quantile(values, share - 0.5 / len(values), method="inverted_cdf")


def test_a_timeline_is_kept() -> None:
    found = moments(over_time(make_run(), seconds=60, points=40))
    assert len(found.latency_s) == len(found.temperature_c) == len(found.clock_hz) == 40
    assert found.temperature_c[0] == (0.0, 48.0)
    assert found.clock_hz[-1] == (60.0, 2.0e9)


def test_a_long_timeline_is_thinned_to_its_ends() -> None:
    found = moments(over_time(make_run(), seconds=3600, points=3000))
    assert len(found.latency_s) == 60
    assert (found.latency_s[0][0], found.latency_s[-1][0]) == (0.0, 3600.0)


def test_without_a_timeline_the_samples_are_drawn() -> None:
    run = make_run(queries=600)
    found = moments(run)
    assert len(found.latency_s) == 60
    assert found.temperature_c == found.clock_hz == ()
    # The first point is the median of the first tenth of a tenth, 10 queries, at the beginning.
    assert found.latency_s[0] == (0.0, pytest.approx(float(np.median(run.samples.latency_s[:10]))))
    with_moments = replaced(run, "samples", at_s=tuple(10.0 + index for index in range(600)))
    assert moments(with_moments).latency_s[1][0] == 20.0


def test_a_language_model_over_time() -> None:
    run = make_generation_run()
    assert [moment for moment, _ in moments(run).latency_s] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert moments(dataclasses.replace(run, samples=dataclasses.replace(run.samples, at_s=None))).latency_s == ()
