"""The intervals of the compression benchmark, against SciPy's and against their definitions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

stats = pytest.importorskip("scipy.stats")


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "compression_statistics.py"
    found = importlib.util.spec_from_file_location("compression_statistics", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


statistics = _load()


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (799, 872), (2831, 3080), (1, 3)])
def test_wilson_is_scipys(right: int, total: int) -> None:
    expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    # both are a dozen float64 operations on values of about 1
    assert statistics.wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 9), (9, 3), (5, 5), (0, 7), (40, 61)])
def test_mcnemar_is_the_binomial_test(won: int, lost: int) -> None:
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert statistics.mcnemar(won, lost) == pytest.approx(expected, abs=1e-12)


def test_no_difference_seen_is_not_no_difference() -> None:
    z2 = statistics.Z**2
    # With no discordant pair the score equation is n d² = z² d (1 - d): d = z² / (n + z²).
    bound = z2 / (872 + z2)
    assert statistics.difference_interval(0, 0, 872) == pytest.approx((-bound, bound), abs=1e-12)


@pytest.mark.parametrize(("won", "lost", "total"), [(3, 9, 200), (0, 6, 100), (40, 61, 3080), (1, 0, 20)])
def test_the_ends_are_rejected_at_exactly_five_percent(won: int, lost: int, total: int) -> None:
    """At an end `d` the score statistic is z, with the likeliest variance under `d`, found here on a grid."""
    for end in statistics.difference_interval(won, lost, total):
        only_first = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]
        both = 1 - 2 * only_first - end
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = lost * np.log(only_first) + (total - won - lost) * np.log(both)
            likelihood += won * np.log(only_first + end) if won else 0.0
        likely = only_first[np.nanargmax(likelihood)]
        score = (won - lost - total * end) / np.sqrt(total * (2 * likely + end - end**2))
        # The grid's step is at most 2.5e-6 of a likelihood whose width is of the order of 1e-2.
        assert abs(score) == pytest.approx(statistics.Z, rel=2e-3)


def test_swapping_the_two_turns_the_interval_around() -> None:
    low, high = statistics.difference_interval(4, 11, 500)
    assert statistics.difference_interval(11, 4, 500) == pytest.approx((-high, -low), abs=1e-12)
