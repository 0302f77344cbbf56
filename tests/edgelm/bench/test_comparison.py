"""Whether a comparison keeps the rate that it states, and finds what is there. SciPy's signed-rank test is the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from run_factory import make_run

from edgelm.bench import Comparison, Run
from edgelm.bench.assemble import compared
from edgelm.bench.comparison import MARGIN, PairedRatio, paired_ratio, signed_rank_interval, verdict_of

stats = pytest.importorskip("scipy.stats")

QUERIES = 12


def blocks(generator: np.random.Generator, count: int, factor: float = 1.0) -> dict[int, list[float]]:
    """Return latencies as a busy machine makes them: a clock that drifts, neighbours that spoil whole rounds, a long tail."""
    found = {}
    for block in range(count):
        level = 0.004 * factor * generator.lognormal(0, 0.02)
        if generator.random() < 0.15:
            level *= generator.uniform(1, 2)
        latencies = level * generator.lognormal(0, 0.03, QUERIES)
        latencies[generator.random(QUERIES) < 0.05] *= 8
        found[block] = latencies.tolist()
    return found


@pytest.mark.parametrize("count", [8, 13, 25, 60])
def test_an_interval_holds_what_the_signed_rank_test_does_not_reject(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count)
    found = signed_rank_interval(values)
    assert found is not None
    estimate, low, high = found
    assert low < estimate < high

    def p(centre: float) -> float:
        return float(stats.wilcoxon(values - centre, method="exact").pvalue)

    # Just inside an end the test does not reject at 1 %, just outside it does.
    step = 1e-9
    assert p(low + step) > 0.01 >= p(low - step)
    assert p(high - step) > 0.01 >= p(high + step)


def test_of_many_values_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0, 1, 200)
    found = signed_rank_interval(values)
    assert found is not None
    for end, direction in ((found[1], 1), (found[2], -1)):
        inside, outside = (
            float(stats.wilcoxon(values - end - direction * step, method="approx", correction=True).pvalue)
            for step in (1e-9, -1e-9)
        )
        assert inside > 0.01 >= outside


def test_the_estimate_is_the_median_of_the_means_of_pairs() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    means = [(values[i] + values[j]) / 2 for i in range(8) for j in range(i, 8)]
    found = signed_rank_interval(values)
    assert found is not None
    assert found[0] == np.median(means)


def test_too_few_rounds_are_said() -> None:
    generator = np.random.default_rng(0)
    found = paired_ratio(blocks(generator, 7), blocks(generator, 7))
    assert found == PairedRatio(ratio=None, low=None, high=None, blocks=7)
    assert verdict_of(found) == "too few blocks"
    assert signed_rank_interval(np.array([])) is None


def test_a_thing_against_itself_is_no_different_at_the_stated_rate() -> None:
    """200 tries at 99 %: 2 intervals are expected to miss. Above 8 a fair one would be in one case of 1000 (binomial)."""
    generator = np.random.default_rng(7)
    found = [paired_ratio(blocks(generator, 20), blocks(generator, 20)) for _ in range(200)]
    missed = sum(not (each.low or math.inf) <= 1 <= (each.high or 0) for each in found)
    assert missed <= stats.binom.ppf(0.999, 200, 0.01) == 8
    # The verdict asks for the margin too, so it is wrong more rarely still.
    assert sum(verdict_of(each) != "no difference" for each in found) <= missed


@pytest.mark.parametrize(("factor", "verdict"), [(1.03, "slower"), (1 / 1.03, "faster")])
def test_a_true_difference_of_three_percent_is_found(factor: float, verdict: str) -> None:
    """In 60 rounds of the same machine. The rounds are spread by 20 %, which pairs alone do not remove here."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(40):
        base = blocks(generator, 60)
        # The same moments of the machine, and the noise of each query anew.
        other = {
            block: [value * factor * generator.lognormal(0, 0.03) for value in latencies]
            for block, latencies in base.items()
        }
        found.append(paired_ratio(other, base))
    assert sum(verdict_of(each) == verdict for each in found) >= 38
    assert np.median([each.ratio or 0 for each in found]) == pytest.approx(factor, rel=0.003)


def test_rounds_that_only_one_has_and_surplus_queries_do_not_count() -> None:
    first = {block: [0.002, 0.004] for block in range(20)}
    second = {block: [0.001, 0.002, 9.0] for block in range(5, 30)}
    found = paired_ratio(first, second)
    assert found.blocks == 15
    assert (found.ratio, found.low, found.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))


def test_a_difference_within_the_margin_is_none() -> None:
    assert verdict_of(PairedRatio(ratio=1.005, low=1.004, high=1.006, blocks=20)) == "no difference"
    assert verdict_of(PairedRatio(ratio=1.02, low=1 + MARGIN / 2, high=1.03, blocks=20)) == "no difference"
    assert verdict_of(PairedRatio(ratio=1.02, low=1.011, high=1.03, blocks=20)) == "slower"
    assert verdict_of(PairedRatio(ratio=0.98, low=0.97, high=0.989, blocks=20)) == "faster"


def test_runs_of_a_session_are_compared_with_the_first() -> None:
    runs = [make_run(name="a", seed=1), make_run(name="b", seed=1, median_s=0.008, runtime="onnx")]
    first, second = compared(runs)
    assert first.comparisons == ()
    (comparison,) = second.comparisons
    assert isinstance(comparison, Comparison)
    assert (comparison.with_id, comparison.with_name) == (runs[0].id, "a in litert")
    assert comparison.verdict == "slower"
    assert comparison.ratio == pytest.approx(2)
    assert comparison.blocks == 20
    assert Run.from_json(second.to_json()) == second
