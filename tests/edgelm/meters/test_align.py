"""Clocks are brought together by the load's pattern: the true offset lies within the bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.errors import MeterError
from edgelm.meters import SYNC_PATTERN_S, MeterFacts, Trace, align, energy_between, make_trace

IDLE_W, LOAD_W = 3.0, 7.0


def pattern(start_s: float, parts: Sequence[tuple[float, float]] = SYNC_PATTERN_S) -> list[tuple[float, float]]:
    loads = []
    for on, off in parts:
        loads.append((start_s, start_s + on))
        start_s += on + off
    return loads


def meter(
    loads: Sequence[tuple[float, float]],
    *,
    offset_s: float,
    drift: float = 0.0,
    period_s: float = 0.5,
    noise_w: float = 0.0,
    until_s: float = 60.0,
    mean: bool = False,
) -> Trace:
    """Readings of the load by a clock for which ``meter_time = (load_time - offset) / (1 + drift)``."""
    by_load = np.arange(0.013, until_s, period_s)
    fine = np.arange(0.0, until_s, 0.005)
    on = np.zeros(len(fine), dtype=bool)
    for start, end in loads:
        on |= (fine >= start) & (fine < end)
    power = np.where(on, LOAD_W, IDLE_W)
    if mean:  # a reading is the mean since the one before
        total = np.concatenate([[0.0], np.cumsum(power) * 0.005])
        edges = np.interp(np.concatenate([[max(0.0, by_load[0] - period_s)], by_load]), np.append(fine, until_s), total)
        value = np.diff(edges) / np.diff(np.concatenate([[max(0.0, by_load[0] - period_s)], by_load]))
    else:
        value = power[np.searchsorted(fine, by_load, side="right") - 1]
    value = value + np.random.default_rng(0).normal(0, noise_w, len(value))
    facts = MeterFacts(
        name="plug",
        sensor="external",
        scope="wall",
        method="measured",
        quantity="watts",
        rate_hz=1 / period_s,
        resolution=0.01,
        lag_s=period_s if mean else 0.0,
    )
    return make_trace(facts, (by_load - offset_s) / (1 + drift), value)


@settings(max_examples=30, deadline=None)
@given(
    offset=st.floats(-1e4, 1e4),
    drift=st.floats(-5e-3, 5e-3),
    start=st.floats(8.0, 12.0),
    noise=st.sampled_from([0.0, 0.3]),
    mean=st.booleans(),
)
def test_the_offset_is_within_its_bound(offset: float, drift: float, start: float, noise: float, mean: bool) -> None:
    loads = pattern(start)
    trace = meter(loads, offset_s=offset, drift=drift, noise_w=noise, mean=mean)
    found = align(trace, loads)
    # The steps of the finely drawn load are 5 ms long, which is how late each change can be in it.
    for moment in (loads[0][0], loads[-1][1]):
        by_meter = (moment - offset) / (1 + drift)
        assert abs(by_meter * (1 + found.rate) + found.offset_s - moment) <= found.uncertainty_s + 0.005
    assert abs((1 + found.rate) / 1 - (1 + drift)) <= found.rate_uncertainty + 1e-3
    # Readings are half a second apart: no worse than that, and the lag of a mean.
    assert found.uncertainty_s <= 1.0
    assert found.edges == 8


def test_energy_by_the_aligned_clock_is_within_its_bound() -> None:
    loads = pattern(10.0)
    trace = meter(loads, offset_s=-1_764_000_000.0, drift=1e-4)  # a meter that counts seconds since 1970
    aligned = align(trace, loads).apply(trace)
    start, end = loads[1]
    energy = energy_between(aligned, start, end)
    assert abs(energy.joules - LOAD_W * (end - start)) <= energy.uncertainty_j
    assert energy.clock_j > 0
    assert not energy.reliable  # 5 s of a meter that reads twice a second


def test_a_counter_is_aligned_too() -> None:
    loads = pattern(10.0)
    watts = meter(loads, offset_s=33.0, period_s=0.2)
    joules = np.concatenate([[0.0], np.cumsum(watts.value[:-1] * np.diff(watts.time_s))])
    facts = MeterFacts(
        name="plug", sensor="external", scope="wall", method="measured", quantity="joules", rate_hz=5.0, resolution=0.0
    )
    found = align(make_trace(facts, watts.time_s, joules), loads)
    assert abs(found.offset_s + found.rate * 10.0 - 33.0) <= found.uncertainty_s + 0.005


def test_a_pattern_that_repeats_itself_is_refused() -> None:
    loads = pattern(10.0, [(2.0, 2.0)] * 11)
    trace = meter(loads, offset_s=5.0, until_s=80.0)
    with pytest.raises(MeterError, match="in two places"):
        align(trace, loads)


def test_a_meter_of_something_else_is_refused() -> None:
    loads = pattern(10.0)
    trace = meter([], offset_s=0.0, noise_w=1.0)
    with pytest.raises(MeterError, match="does not follow the load"):
        align(trace, loads)


def test_a_meter_that_shows_nothing_at_all_is_refused() -> None:
    with pytest.raises(MeterError, match="does not follow the load"):
        align(meter([], offset_s=0.0), pattern(10.0))


def test_a_meter_that_was_started_too_late_is_refused() -> None:
    loads = pattern(2.0)
    with pytest.raises(MeterError, match="Start the meter before the load"):
        align(meter(loads, offset_s=0.0, until_s=20.0), loads)


def test_a_pattern_too_fast_for_the_meter_is_refused() -> None:
    with pytest.raises(MeterError, match="Clocks are aligned by a pattern"):
        align(meter([], offset_s=0.0), [(10.0, 10.5), (12.0, 13.0)])
    with pytest.raises(MeterError, match="a start before an end"):
        align(meter([], offset_s=0.0), [(10.0, 9.0)])
