from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest

from edgelm.bench.protocol import Measure, WarmUp
from edgelm.bench.worker import Answer, Query, measure, warm_up


class FakeClock:
    """Moves only when a query takes its time."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def query(self, seconds: float, *, answer: Answer | None = None, seen: list[float] | None = None) -> Query:
        def ask() -> None:
            self.now_ns += round(seconds * 1e9)
            if seen is not None:
                seen.append(seconds)

        return Query(ask, lambda _: answer or Answer())


def test_measures_the_call_alone() -> None:
    clock = FakeClock()

    def slow_telling(_: object) -> Answer:
        clock.now_ns += 10**9
        return Answer()

    queries = [Query(clock.query(0.002).ask, slow_telling)]
    turn = measure(queries, Measure(first=0, seconds=100, queries=3, settle=False), clock=clock)
    assert turn.samples.latency_s == (0.002, 0.002, 0.002)


def test_cycles_through_the_inputs_from_where_it_was() -> None:
    clock, seen = FakeClock(), list[float]()
    queries = [clock.query(seconds, seen=seen) for seconds in (0.1, 0.2, 0.3)]
    turn = measure(queries, Measure(first=4, seconds=100, queries=4, settle=False), clock=clock)
    assert seen == [0.2, 0.3, 0.1, 0.2]
    assert turn.samples.latency_s == pytest.approx(seen)


def test_begins_no_query_after_the_time_but_has_at_least_one() -> None:
    clock = FakeClock()
    queries = [clock.query(0.1)]
    assert (
        len(measure(queries, Measure(first=0, seconds=0.25, queries=99, settle=False), clock=clock).samples.latency_s)
        == 3
    )
    assert (
        len(measure(queries, Measure(first=0, seconds=0, queries=99, settle=False), clock=clock).samples.latency_s) == 1
    )


def test_the_settling_query_is_not_counted() -> None:
    clock, seen = FakeClock(), list[float]()
    turn = measure([clock.query(1, seen=seen)], Measure(first=0, seconds=99, queries=2, settle=True), clock=clock)
    assert len(seen) == 3
    assert len(turn.samples.latency_s) == 2


def test_keeps_what_every_answer_tells() -> None:
    clock = FakeClock()
    told = Answer(tokenize_s=0.0010000000001, run_s=0.002, tokens=5, sequence_length=8, truncated=True)
    turn = measure([clock.query(1, answer=told)], Measure(first=0, seconds=9, queries=2, settle=False), clock=clock)
    assert turn.samples.tokenize_s == (0.001, 0.001)
    assert turn.samples.run_s == (0.002, 0.002)
    assert turn.samples.tokens == (5, 5)
    assert turn.samples.sequence_length == (8, 8)
    assert turn.truncated == (0,)


def test_a_column_that_one_answer_lacks_is_lacking() -> None:
    clock = FakeClock()
    queries = [clock.query(1, answer=Answer(tokens=5)), clock.query(1)]
    assert measure(queries, Measure(first=0, seconds=9, queries=2, settle=False), clock=clock).samples.tokens is None


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_garbage_collector_rests_meanwhile(error: type[Exception] | None) -> None:
    enabled: list[bool] = []

    def ask() -> None:
        enabled.append(gc.isenabled())
        if error is not None:
            raise error

    request = Measure(first=0, seconds=9, queries=1, settle=False)
    if error is None:
        measure([Query(ask, lambda _: Answer())], request)
    else:
        with pytest.raises(error):
            measure([Query(ask, lambda _: Answer())], request)
    assert enabled == [False]
    assert gc.isenabled()


def _falling(clock: FakeClock, times: list[float]) -> Callable[[], None]:
    left = itertools.chain(times, itertools.repeat(times[-1]))

    def ask() -> None:
        clock.now_ns += round(next(left) * 1e9)

    return ask


def test_warm_up_ends_when_the_p50_settles() -> None:
    clock = FakeClock()
    queries = [Query(_falling(clock, [1.0] * 10 + [0.5] * 10 + [0.25]), lambda _: Answer())]
    found = warm_up(queries, WarmUp(seconds=1000, queries=1000), clock=clock)
    assert found.settled
    assert found.queries == 40  # the third and the fourth window of ten are the first two alike


def test_warm_up_is_bounded() -> None:
    clock = FakeClock()
    never = [Query(_falling(clock, [2.0**-index for index in range(1000)]), lambda _: Answer())]
    assert not warm_up(never, WarmUp(seconds=1000, queries=30), clock=clock).settled
    slow = [clock.query(10)]
    assert warm_up(slow, WarmUp(seconds=25, queries=1000), clock=clock).queries == 3
