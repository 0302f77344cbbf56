"""The sampler: a thread, arrays that do not grow, and readings that fail."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edgelm.errors import MeterError
from edgelm.meters import FakeMeter, Sampler, energy_between


def test_a_window_between_two_marks() -> None:
    # Joules that are the time itself, so a window holds as many joules as it has seconds: any clock will do.
    with Sampler(FakeMeter(lambda time_s: time_s, quantity="joules"), rate_hz=200) as sampler:
        start = sampler.mark()
        time.sleep(0.1)
        end = sampler.mark()
    energy = energy_between(sampler.trace(), start, end)
    assert energy.joules == pytest.approx(end - start)
    # A counter of even power, read at both edges: nothing is unknown but rounding.
    assert energy.uncertainty_j < 1e-6
    assert energy.reason is not None
    assert "too short" in energy.reason


def test_a_trace_may_be_asked_for_while_it_runs() -> None:
    with Sampler(FakeMeter(lambda time_s: 5.0), rate_hz=200) as sampler:
        sampler.mark()
        first = sampler.trace()
        sampler.mark()
        assert len(sampler.trace().value) > len(first.value)
        assert set(first.value.tolist()) == {5.0}


class Slow:
    """A clock that goes on by a step each time that it is asked: as many readings as one likes, without waiting."""

    def __init__(self) -> None:
        self.moment = 0.0

    def __call__(self) -> float:
        self.moment += 0.001
        return self.moment


def test_full_arrays_are_thinned_and_marks_stay() -> None:
    now = Slow()
    sampler = Sampler(
        FakeMeter(lambda time_s: 2.0 * time_s, quantity="joules", now=now), rate_hz=0.001, capacity=64, now=now
    )
    sampler.start()
    marks = []
    for number in range(1000):
        if number % 100 == 50:
            marks.append(sampler.mark())
        else:
            sampler._try_to_take()
    sampler.stop()
    trace = sampler.trace()
    assert len(trace.value) <= 64
    assert trace.period_s > 1000.0  # it reads half as often each time
    assert set(marks) <= set(trace.time_s.tolist())
    assert trace.time_s[0] < marks[0] < marks[-1] < trace.time_s[-1]
    assert energy_between(trace, marks[0], marks[-1]).joules == pytest.approx(2.0 * (marks[-1] - marks[0]))


def test_a_meter_that_sends_is_thinned_evenly() -> None:
    now = Slow()
    meter = FakeMeter(lambda time_s: 5.0, rate_hz=500, now=now)
    meter.facts = replace(meter.facts, pushed=True)
    sampler = Sampler(meter, capacity=64, now=now)
    meter.open()
    for _ in range(1000):
        sampler._take(marked=False)
    trace = sampler.trace()
    assert 32 <= len(trace.value) <= 64
    assert np.diff(trace.time_s).max() == pytest.approx(np.diff(trace.time_s).min(), rel=0.5)


def test_readings_that_fail_are_counted_and_told() -> None:
    calls = []

    def value(time_s: float) -> float:
        calls.append(time_s)
        if 2 <= len(calls) <= 4:
            raise MeterError("the sensor was unplugged")
        return 5.0

    sampler = Sampler(FakeMeter(value, rate_hz=100))
    sampler.start()
    while len(calls) < 8:
        time.sleep(0.005)
    sampler.stop()
    assert any("3 of" in event and "unplugged" in event for event in sampler.trace().events)


def test_a_meter_that_is_dead_at_once() -> None:
    def dead(time_s: float) -> float:
        raise MeterError("the sensor was unplugged")

    sampler = Sampler(FakeMeter(dead))
    with pytest.raises(MeterError, match="unplugged"):
        sampler.start()
    with pytest.raises(MeterError, match="not running"):
        sampler.mark()


def test_a_sampler_is_used_once_and_leaves_no_thread() -> None:
    before = threading.active_count()
    sampler = Sampler(FakeMeter(lambda time_s: 5.0))
    sampler.start()
    with pytest.raises(MeterError, match="Make a new one"):
        sampler.start()
    sampler.stop()
    sampler.stop()
    assert threading.active_count() == before
    with pytest.raises(MeterError, match="not running"):
        sampler.mark()


def test_settings_that_make_no_sense() -> None:
    for settings in ({"rate_hz": 0.0}, {"capacity": 3}):
        with pytest.raises(MeterError, match="A sampler needs"):
            Sampler(FakeMeter(lambda time_s: 5.0), **settings)  # type: ignore[arg-type]


def test_a_meter_that_takes_long_says_so() -> None:
    def slow(time_s: float) -> float:
        time.sleep(0.01)
        return 5.0

    with Sampler(FakeMeter(slow), rate_hz=50) as sampler:
        sampler.mark()
    assert any("reading the meter took" in event for event in sampler.trace().events)
    assert np.all(sampler.trace().value == 5.0)
