from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.bench.statistics import deadline_hit_rate, jitter, percentile, percentile_if_enough, samples_needed, settled

latencies = st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=400)
per_milles = st.sampled_from([1, 10, 250, 333, 500, 750, 900, 990, 999, 1000])


@given(latencies, st.sampled_from([250, 500, 750, 1000]))
def test_percentile_is_numpys_inverted_cdf(values: list[float], per_mille: int) -> None:
    # Shares that binary numbers hold exactly: of others NumPy rounds the rank, and may take the neighbour.
    assert percentile(sorted(values), per_mille) == np.quantile(values, per_mille / 1000, method="inverted_cdf")


@given(latencies, per_milles)
def test_percentile_lies_within_numpys_neighbours(values: list[float], per_mille: int) -> None:
    found = percentile(sorted(values), per_mille)
    share = per_mille / 1000
    assert np.quantile(values, max(0, share - 1e-9), method="inverted_cdf") <= found
    assert found <= np.quantile(values, min(1, share + 1e-9), method="inverted_cdf")


@given(latencies, per_milles)
def test_percentile_is_the_smallest_value_that_covers_the_share(values: list[float], per_mille: int) -> None:
    found = percentile(sorted(values), per_mille)
    assert found in values
    covered = Fraction(sum(value <= found for value in values), len(values))
    below = Fraction(sum(value < found for value in values), len(values))
    assert covered >= Fraction(per_mille, 1000) > below


@pytest.mark.parametrize(("per_mille", "needed"), [(500, 2), (900, 10), (990, 100), (999, 1000)])
def test_percentile_needs_samples_above_it(per_mille: int, needed: int) -> None:
    assert samples_needed(per_mille) == needed
    assert percentile_if_enough([1.0] * needed, per_mille) == 1.0
    if per_mille > 500:
        assert percentile_if_enough([1.0] * (needed - 1), per_mille) is None


def test_one_sample_is_its_own_p50() -> None:
    assert percentile_if_enough([3.0], 500) == 3.0


@pytest.mark.parametrize(("values", "per_mille"), [([], 500), ([1.0], 0), ([1.0], 1001)])
def test_percentile_refuses_nonsense(values: list[float], per_mille: int) -> None:
    with pytest.raises(ValueError, match="per mille"):
        percentile(values, per_mille)


@given(st.lists(st.floats(1e-6, 10), min_size=2, max_size=200))
def test_jitter_is_numpys_sample_deviation(values: list[float]) -> None:
    # `statistics` computes in fractions; NumPy's sums of up to 200 floats lose at most some 200 units in the last place.
    assert math.isclose(jitter(values) or 0.0, float(np.std(values, ddof=1)), rel_tol=1e-9, abs_tol=1e-12)


def test_jitter_of_one_value_is_not_known() -> None:
    assert jitter([1.0]) is None


@given(latencies, st.floats(1e-6, 10))
def test_deadline_hit_rate(values: list[float], deadline_s: float) -> None:
    assert deadline_hit_rate(values, deadline_s) == np.mean(np.asarray(values) <= deadline_s)
    assert deadline_hit_rate(values, None) is None


def test_settled_compares_the_last_two_windows() -> None:
    falling = [1.0 - 0.03 * index for index in range(20)]
    assert not settled(falling, 10)
    assert settled([*falling, *[0.4] * 20], 10)
    assert not settled([1.0] * 19, 10)
    # Two inputs in turn, one slow: windows of whole cycles see the same mixture.
    assert settled([1.0, 9.0] * 10, 10)
