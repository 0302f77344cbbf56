"""The energy of synthetic loads whose true energy is known, against the bound that is stated beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.errors import MeterError
from edgelm.meters import MeterFacts, Trace, energy_between, make_trace, unwrap, window_needed_s
from edgelm.meters.meter import Quantity

PERIOD_S = 0.1
# Readings come up to a fifth of a period early or late, so two of them are at most 1.4 periods apart.
JITTER = 0.2


def facts(quantity: Quantity = "watts", **changes: object) -> MeterFacts:
    known = {"resolution": 0.0, "lag_s": 0.0, "range_j": None, **changes}
    return MeterFacts(
        name="test", sensor="fake", scope="board", method="measured", quantity=quantity, rate_hz=1 / PERIOD_S, **known
    )  # type: ignore[arg-type]


@dataclass(frozen=True)
class Steps:
    """Power that jumps between levels; `energy` is its exact integral from the first time on."""

    times: np.ndarray
    levels: np.ndarray

    def power(self, at: np.ndarray) -> np.ndarray:
        return self.levels[np.clip(np.searchsorted(self.times, at, side="right") - 1, 0, len(self.levels) - 1)]

    def energy(self, at: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(np.diff(self.times) * self.levels[:-1])])
        index = np.clip(np.searchsorted(self.times, at, side="right") - 1, 0, len(self.levels) - 1)
        return total[index] + (at - self.times[index]) * self.levels[index]


@dataclass(frozen=True)
class Sine:
    mean: float
    amplitude: float
    period_s: float
    phase: float

    def power(self, at: np.ndarray) -> np.ndarray:
        return self.mean + self.amplitude * np.sin(2 * math.pi * at / self.period_s + self.phase)

    def energy(self, at: np.ndarray) -> np.ndarray:
        angular = 2 * math.pi / self.period_s
        return self.mean * at - self.amplitude / angular * np.cos(angular * at + self.phase)


@st.composite
def steps(draw: st.DrawFn) -> Steps:
    """Levels that last at least 3 periods: two readings at least see each. The lowest and highest stand in front."""
    levels = draw(st.lists(st.floats(0.5, 20.0), min_size=2, max_size=5))
    order = draw(st.lists(st.sampled_from(levels), min_size=4, max_size=20))
    everything = np.array([min(levels), max(levels), *order, order[-1]])
    durations = draw(st.lists(st.floats(3.0, 12.0), min_size=len(everything) - 1, max_size=len(everything) - 1))
    durations[:2] = [6.0, 6.0]
    return Steps(np.concatenate([[0.0], np.cumsum(durations) * PERIOD_S]), everything)


sines = st.builds(
    Sine,
    mean=st.floats(3.0, 10.0),
    amplitude=st.floats(0.0, 3.0),
    # Eight of the longest segments a period: three segments around a peak are then bent one way.
    period_s=st.floats(8 * 1.4 * PERIOD_S, 20.0),
    phase=st.floats(0.0, 6.3),
)


def reading_times(end_s: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    regular = np.arange(0.0, end_s, PERIOD_S)
    return regular + random.uniform(-JITTER, JITTER, len(regular)) * PERIOD_S


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    return values if step == 0 else np.round(values / step) * step


def window(data: st.DataObject, times: np.ndarray) -> tuple[float, float]:
    """Any window that leaves a segment free at each end of the trace."""
    first, last = float(times[1]), float(times[-2])
    start = data.draw(st.floats(first, last - 0.01))
    return start, data.draw(st.floats(start + 0.005, last))


def check(trace: Trace, load: Steps | Sine, start: float, end: float) -> None:
    energy = energy_between(trace, start, end)
    true = float(np.diff(load.energy(np.array([start, end])))[0])
    # What float64 loses in the oracle's own sums: some 30 terms of at most 1000 J.
    assert abs(energy.joules - true) <= energy.uncertainty_j + 1e-10
    assert energy.standard_j <= energy.uncertainty_j + 1e-12


@settings(max_examples=60, deadline=None)
@given(
    load=st.one_of(steps(), sines), seed=st.integers(0, 999), step_w=st.sampled_from([0.0, 0.025, 0.5]), data=st.data()
)
def test_watts_are_within_the_bound(load: Steps | Sine, seed: int, step_w: float, data: st.DataObject) -> None:
    times = reading_times(load.times[-1] if isinstance(load, Steps) else 12.0, seed)
    trace = make_trace(facts(resolution=step_w), times, rounded(load.power(times), step_w), period_s=PERIOD_S)
    check(trace, load, *window(data, times))


@settings(max_examples=60, deadline=None)
@given(
    load=st.one_of(steps(), sines), seed=st.integers(0, 999), step_j=st.sampled_from([0.0, 61e-6, 0.1]), data=st.data()
)
def test_joules_are_within_the_bound(load: Steps | Sine, seed: int, step_j: float, data: st.DataObject) -> None:
    times = reading_times(load.times[-1] if isinstance(load, Steps) else 12.0, seed)
    counted = rounded(load.energy(times) - load.energy(np.array([-1.0])), step_j)
    check(make_trace(facts("joules", resolution=step_j), times, counted, period_s=PERIOD_S), load, *window(data, times))


@settings(max_examples=40, deadline=None)
@given(load=steps(), seed=st.integers(0, 999), quantity=st.sampled_from(["watts", "joules"]), data=st.data())
def test_readings_that_are_late_are_within_the_bound(
    load: Steps, seed: int, quantity: Quantity, data: st.DataObject
) -> None:
    lag_s = PERIOD_S / 2
    times = reading_times(float(load.times[-1]), seed)
    seen_at = np.maximum(times - np.random.default_rng(seed).uniform(0, lag_s, len(times)), 0.0)
    value = load.power(seen_at) if quantity == "watts" else load.energy(seen_at)
    check(make_trace(facts(quantity, lag_s=lag_s), times, value, period_s=PERIOD_S), load, *window(data, times))


@settings(max_examples=40, deadline=None)
@given(load=steps(), seed=st.integers(0, 999), quantity=st.sampled_from(["watts", "joules"]), data=st.data())
def test_gaps_are_within_the_bound_and_told(load: Steps, seed: int, quantity: Quantity, data: st.DataObject) -> None:
    times = reading_times(float(load.times[-1]), seed)
    lost = data.draw(st.integers(13, len(times) - 4))
    times = np.delete(times, slice(lost, lost + data.draw(st.integers(4, 30))))
    if len(times) - lost < 3:
        return
    value = load.power(times) if quantity == "watts" else load.energy(times)
    trace = make_trace(facts(quantity), times, value, period_s=PERIOD_S)
    assert trace.gaps == ((float(times[lost - 1]), float(times[lost])),)
    check(trace, load, *window(data, times))
    whole = energy_between(trace, float(times[1]), float(times[-2]))
    assert whole.gap_s == pytest.approx(times[lost] - times[lost - 1])
    # A counter counts on while nobody reads it.
    assert (whole.gaps_j < 1e-9) if quantity == "joules" else (whole.gaps_j >= 0)


@settings(max_examples=40, deadline=None)
@given(load=steps(), drift=st.floats(-0.02, 0.02), offset=st.floats(-0.1, 0.1), data=st.data())
def test_a_clock_that_is_off_is_within_the_bound(load: Steps, drift: float, offset: float, data: st.DataObject) -> None:
    """The meter's clock runs away by `drift` and starts `offset` late; the trace is told the most that comes of it."""
    times = reading_times(float(load.times[-1]), 1)
    wrong = times * (1 + drift) + offset
    most = abs(offset) + abs(drift) * float(np.abs(times).max())
    # A share of the wrong second, where `drift` is one of the right second: within 1 / (1 - 0.02) of each other.
    trace = make_trace(facts(), wrong, load.power(times), period_s=PERIOD_S).on_clock(
        offset_s=0.0, rate=0.0, error_s=most, rate_error=abs(drift) / 0.98
    )
    check(trace, load, *window(data, wrong))


@settings(max_examples=40, deadline=None)
@given(load=steps(), range_j=st.floats(3.0, 30.0), data=st.data())
def test_a_counter_that_starts_again_is_followed(load: Steps, range_j: float, data: st.DataObject) -> None:
    times = reading_times(float(load.times[-1]), 2)  # at most 20 W x 0.14 s = 2.8 J pass between two readings
    counted = load.energy(times) - load.energy(times[:1])
    trace = make_trace(facts("joules"), times, unwrap(counted % range_j, range_j), period_s=PERIOD_S)
    np.testing.assert_allclose(trace.value, counted, atol=1e-9)
    check(trace, load, *window(data, times))


def test_a_window_between_readings_has_nothing_unknown_at_its_edges() -> None:
    times = np.arange(0.0, 30.0, PERIOD_S)
    energy = energy_between(make_trace(facts("joules"), times, 5.0 * times), float(times[10]), float(times[250]))
    assert energy.joules == pytest.approx(120.0)
    assert energy.edges_j == pytest.approx(0.0, abs=1e-9)
    assert (energy.readings, energy.reliable, energy.reason) == (241, True, None)


def test_half_a_period_times_the_step_is_what_an_edge_can_be_off() -> None:
    """A load begins in the middle between two readings, and the window with it."""
    times = np.arange(0.0, 30.0, PERIOD_S)
    load = Steps(np.array([0.0, 10.05, 40.0]), np.array([2.0, 6.0, 6.0]))
    energy = energy_between(make_trace(facts("joules"), times, load.energy(times)), 10.05, 25.0)
    # 4 W of step, of which the segment's own mean is in the middle: half a period of 0.1 s times half of it.
    assert energy.edges_j == pytest.approx(0.5 * PERIOD_S * 2.0)
    assert abs(energy.joules - 6.0 * 14.95) <= energy.uncertainty_j


def test_a_step_right_after_a_reading_uses_up_the_bound() -> None:
    """The trapezoid has half of the step too little in that one segment: 0.1 s x 4 W / 2."""
    times = np.arange(0.0, 30.0, PERIOD_S)
    load = Steps(np.array([0.0, times[100] + 1e-9, 40.0]), np.array([2.0, 6.0, 6.0]))
    energy = energy_between(make_trace(facts(), times, load.power(times)), float(times[50]), float(times[150]))
    error = abs(energy.joules - float(np.diff(load.energy(times[[50, 150]]))[0]))
    assert error == pytest.approx(0.2)
    assert energy.between_j == pytest.approx(0.2)


def test_a_peak_between_two_equal_readings_is_allowed_for() -> None:
    """Both readings are level, the power between them is not: their flanks tell."""
    load = Sine(5.0, 3.0, 8 * PERIOD_S, 0.0)
    times = (
        np.arange(0, 9) - 0.5
    ) * PERIOD_S + 2 * PERIOD_S  # the peak, at 2 periods, is in the middle of the first two
    energy = energy_between(make_trace(facts(), times, load.power(times)), float(times[0]), float(times[1]))
    error = abs(energy.joules - float(np.diff(load.energy(times[:2]))[0]))
    assert load.power(times[0]) == pytest.approx(float(load.power(times[1])))
    assert 0.005 < error <= energy.uncertainty_j


def test_a_counter_that_is_read_late_at_one_end_uses_up_the_bound() -> None:
    times = np.arange(0.0, 30.0, PERIOD_S)
    seen_at = times.copy()
    seen_at[250] -= 0.05
    energy = energy_between(
        make_trace(facts("joules", lag_s=0.05), times, 5.0 * seen_at), float(times[100]), float(times[250])
    )
    assert abs(energy.joules - 75.0) == pytest.approx(0.05 * 5.0)
    # The late reading makes the segment after it look like 7.5 W.
    assert 0.25 <= energy.lag_j <= 0.05 * 7.5 + 1e-9


def test_power_that_is_read_late_moves_with_its_steps() -> None:
    times = np.arange(0.0, 30.0, PERIOD_S)
    load = Steps(np.array([0.0, 10.0, 40.0]), np.array([2.0, 6.0, 6.0]))
    energy = energy_between(make_trace(facts(lag_s=0.1), times, load.power(times - 0.1)), 5.0, 15.0)
    assert energy.lag_j == pytest.approx(0.1 * 4.0)
    assert abs(energy.joules - 40.0) <= energy.uncertainty_j


def test_a_step_at_the_end_may_be_read_after_it() -> None:
    """The load rises 0.04 s before the window ends, and the last reading in it is 0.05 s old."""
    times = np.arange(0.0, 30.0, PERIOD_S)
    load = Steps(np.array([0.0, 9.96, 40.0]), np.array([2.0, 6.0, 6.0]))
    trace = make_trace(facts(lag_s=0.05), times, load.power(np.maximum(times - 0.05, 0.0)))
    energy = energy_between(trace, 5.0, float(times[100]))
    assert energy.joules == pytest.approx(10.0)
    assert energy.lag_j == pytest.approx(0.05 * 4.0)
    assert 10.16 - energy.joules <= energy.uncertainty_j


@pytest.mark.parametrize("quantity", ["watts", "joules"])
def test_values_that_are_all_rounded_one_way_use_up_the_bound(quantity: Quantity) -> None:
    times = np.arange(0.0, 30.0, PERIOD_S)
    step = 0.5
    value = np.full(300, 4.25) if quantity == "watts" else 4.0 * times
    value = value + (step / 2 * np.where(np.arange(300) < 150, 1, 1 if quantity == "watts" else -1))
    if quantity == "joules":
        value = np.maximum.accumulate(value)
    energy = energy_between(
        make_trace(facts(quantity, resolution=step), times, value), float(times[50]), float(times[250])
    )
    error = abs(energy.joules - (4.25 if quantity == "watts" else 4.0) * 20.0)
    assert error == pytest.approx(energy.resolution_j)


def test_a_clock_that_is_off_by_next_to_nothing() -> None:
    trace = make_trace(facts(), np.arange(0.0, 30.0, PERIOD_S), np.full(300, 4.0))
    shifted = trace.on_clock(offset_s=0.0, rate=0.0, error_s=1e-30, rate_error=0.0)
    for start, end in ((float(trace.time_s[0]), float(trace.time_s[-1])), (5.0, 20.05)):
        assert energy_between(shifted, start, end).clock_j < 1e-20


def test_one_standard_deviation_is_what_random_readings_give() -> None:
    """Over many moments of reading, the error's spread is that which is stated, within what 200 tries can tell (±10 %)."""
    load = Steps(np.arange(0.0, 61.0, 0.35), np.tile([3.0, 7.0], 88)[: len(np.arange(0.0, 61.0, 0.35))])
    errors, stated = [], []
    for seed in range(200):
        times = np.arange(0.0, 60.0, PERIOD_S) + np.random.default_rng(seed).uniform(0, PERIOD_S, 600)
        energy = energy_between(make_trace(facts(), times, load.power(times), period_s=PERIOD_S), 5.0, 55.0)
        errors.append(energy.joules - float(np.diff(load.energy(np.array([5.0, 55.0])))[0]))
        stated.append(energy.standard_j)
    spread = float(np.std(errors))
    # The allowance for peaks between readings makes the stated one larger, never smaller.
    assert 0.9 * spread <= float(np.mean(stated)) <= 3 * spread


def test_a_window_too_short_for_the_sensor_says_so() -> None:
    times = np.arange(0.0, 30.0, PERIOD_S)
    energy = energy_between(make_trace(facts(), times, np.full(300, 4.0)), 1.0, 4.0)
    assert not energy.reliable
    assert energy.reason is not None
    assert "at least 10 s" in energy.reason
    assert window_needed_s(facts()) == pytest.approx(10.0)
    assert window_needed_s(facts(), 1.0) == pytest.approx(100.0)
    assert window_needed_s(facts("joules"), 1.0) == pytest.approx(10.0)


def test_a_gap_that_may_hide_a_second_start_of_the_counter_is_not_relied_on() -> None:
    times = np.delete(np.arange(0.0, 60.0, PERIOD_S), slice(300, 350))
    energy = energy_between(make_trace(facts("joules", range_j=20.0), times, 5.0 * times, period_s=PERIOD_S), 1.0, 59.0)
    assert energy.reason is not None
    assert "more than once" in energy.reason


def test_a_window_with_many_missing_readings_is_not_relied_on() -> None:
    times = np.delete(np.arange(0.0, 60.0, PERIOD_S), slice(300, 400))
    energy = energy_between(make_trace(facts(), times, np.full(500, 5.0), period_s=PERIOD_S), 1.0, 59.0)
    assert energy.reason is not None
    assert "missing in 10" in energy.reason


@pytest.mark.parametrize(
    ("times", "values", "message"),
    [
        ([0.0], [1.0], "at least two"),
        ([0.0, 1.0], [1.0, math.nan], "not finite"),
        ([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], "Sort the readings"),
        ([0.0, 1.0, 2.0], [5.0, 6.0, 1.0], "started again"),
    ],
)
def test_readings_that_are_no_trace_are_refused(times: list[float], values: list[float], message: str) -> None:
    with pytest.raises(MeterError, match=message):
        make_trace(facts("joules"), times, values)


def test_a_window_that_was_not_read_is_refused() -> None:
    trace = make_trace(facts(), [0.0, 1.0, 2.0], [1.0, 1.0, 1.0])
    with pytest.raises(MeterError, match="does not cover"):
        energy_between(trace, 1.0, 3.0)
    with pytest.raises(MeterError, match="empty"):
        energy_between(trace, 1.0, 1.0)


def test_a_counter_outside_its_range_is_refused() -> None:
    with pytest.raises(MeterError, match="outside its range"):
        unwrap([1.0, 11.0], 10.0)
