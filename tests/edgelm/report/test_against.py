from __future__ import annotations

import dataclasses

import pytest
from report_factory import BENCHMARK_MODEL, turns
from run_factory import make_run

from edgelm.report.against import Against, against
from edgelm.report.foreign import parse_benchmark_model
from edgelm.report.rows import Row, group_runs

FIRST, SECOND = turns(
    [make_run(name="first", median_s=0.004), make_run(name="second", median_s=0.008, threads=1, seed=1)]
)
APART = make_run(name="apart", median_s=0.006, seed=2)


def _against(*runs: object, name: str) -> list[Against]:
    (group,) = group_runs(runs)  # type: ignore[arg-type]
    rows = group.answers
    return list(against(rows, next(row for row in rows if row.model == name)))


def test_runs_in_turns_have_an_interval() -> None:
    (found,) = _against(FIRST, SECOND, name="first")
    ratio = SECOND.results.p50_s / FIRST.results.p50_s
    assert (found.ratio, found.low, found.high) == pytest.approx((ratio, ratio * 0.99, ratio * 1.012))
    assert found.verdict == "slower (99%, 20 turns)"
    assert found.caveats == ("different numbers of threads: 4 and 1",)


def test_the_other_way_round_everything_is_turned() -> None:
    (found,) = _against(FIRST, SECOND, name="second")
    ratio = FIRST.results.p50_s / SECOND.results.p50_s
    assert (found.ratio, found.low, found.high) == pytest.approx((ratio, ratio / 1.012, ratio / 0.99))
    assert found.verdict.startswith("faster")
    assert found.low is not None
    assert found.high is not None
    assert found.low < ratio < found.high


def test_runs_apart_have_none_and_say_why() -> None:
    found = _against(FIRST, APART, name="first")[0]
    assert found.ratio == pytest.approx(APART.results.p50_s / FIRST.results.p50_s)
    assert (found.low, found.high, found.verdict) == (None, None, "not tested")
    assert found.caveats[0].startswith("measured at another time")
    other_threads = _against(FIRST, dataclasses.replace(SECOND, comparisons=(), session="f" * 16), name="first")[0]
    assert "different numbers of threads: 1 and 4" in other_threads.caveats


def test_a_pair_that_the_benchmark_did_not_compare_is_compared_from_its_turns() -> None:
    (recorded,) = _against(FIRST, SECOND, name="first")
    (found,) = _against(FIRST, dataclasses.replace(SECOND, comparisons=()), name="first")
    # Both draw 400 latencies in 20 rounds: the medians of the pairs spread by 4 % / sqrt(20) around a ratio of 2, two humps
    # and all, and the interval of 99 % of twenty such holds it.
    assert found.verdict == "slower (99%, 20 turns)"
    assert found.low is not None
    assert found.high is not None
    assert found.low < 2 < found.high
    assert found.caveats == recorded.caveats


def test_another_tools_run_is_not_compared() -> None:
    foreign = dataclasses.replace(
        parse_benchmark_model(BENCHMARK_MODEL, device="x"), device=str(FIRST.machine.device_model)
    )
    found = _against(FIRST, foreign, name="first")[0]
    assert isinstance(found.row, Row)
    assert (found.ratio, found.verdict) == (None, "not comparable")
