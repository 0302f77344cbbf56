"""Net of idle, per inference, per token, and the record of a run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from edgelm_device_profiles import load

from edgelm.errors import MeterError
from edgelm.meters import (
    Energy,
    MeterFacts,
    energy_between,
    make_trace,
    measured,
    modelled,
    net,
    not_measured,
    per_token,
    per_unit,
)

FACTS = MeterFacts(
    name="ina226 (hwmon2)",
    sensor="hwmon-ina2xx",
    scope="board",
    method="measured",
    quantity="watts",
    rate_hz=10.0,
    resolution=0.025,
    unseen=("what is not wired behind its shunt",),
)


def energies(levels: list[float], part_s: float = 20.0) -> list[Energy]:
    """The energy of stretches of even power, one after the other; the segments of their edges are left out."""
    times = np.arange(0.0, part_s * len(levels) + 1e-9, 0.1)
    power = np.array(levels)[np.minimum((times / part_s).astype(int), len(levels) - 1)]
    trace = make_trace(FACTS, times, power)
    return [energy_between(trace, number * part_s + 1, (number + 1) * part_s - 1) for number in range(len(levels))]


def test_net_of_idle() -> None:
    before, load_part, after = energies([3.0, 7.0, 3.4])
    result = net(load_part, before, after)
    assert result.idle_w == pytest.approx(3.2)
    assert result.idle_drift_w == pytest.approx(0.4)
    assert result.joules == pytest.approx((7.0 - 3.2) * 18)
    # Half of the drift and half a step of the sensor at idle, and half a step under load, each for 18 s.
    assert result.uncertainty_j == pytest.approx((0.2 + 0.0125 + 0.0125) * 18)
    assert 0 < result.standard_j < result.uncertainty_j
    # Idle that rose as soon as the load began, or only at its end, is within the bound.
    for true_idle in (3.0, 3.4):
        assert abs(result.joules - (7.0 - true_idle) * 18) <= result.uncertainty_j
    assert (result.reliable, result.reason) == (True, None)
    with pytest.raises(MeterError, match="in that order"):
        net(before, load_part, after)


def test_short_windows_are_told_by_name() -> None:
    result = net(*(energies([3.0, 7.0, 3.0], part_s=5.0)[index] for index in (1, 0, 2)))
    assert result.reason is not None
    assert result.reason.count("too short") == 3
    assert "idle before: " in result.reason


def test_per_inference() -> None:
    before, load_part, after = energies([3.0, 7.0, 3.0])
    result = net(load_part, before, after)
    one = per_unit(result, 900)
    assert one.joules == pytest.approx(4.0 * 18 / 900)
    assert one.uncertainty_j == pytest.approx(result.uncertainty_j / 900)
    with pytest.raises(MeterError, match="makes no sense"):
        per_unit(result, 0)


def test_prefill_and_decode_apart() -> None:
    """Tokens that truly cost 0.05 J to read and 0.2 J to generate, at 2 and 4 W beyond idle for 18 s each."""
    idle, prefill_part, rest, generation_part, after = energies([3.0, 5.0, 3.0, 7.0, 3.0])
    prompts = round(36.0 / 0.05)
    generated = 300  # 60 J, and 12 J for 240 tokens of prompts: 72 J
    tokens = per_token(net(prefill_part, idle, rest), prompts, net(generation_part, rest, after), 240, generated)
    assert tokens.prefill.joules == pytest.approx(0.05)
    assert tokens.decode.joules == pytest.approx(0.2)
    assert tokens.decode.uncertainty_j > net(generation_part, rest, after).uncertainty_j / generated
    with pytest.raises(MeterError, match="make no sense"):
        per_token(net(prefill_part, idle, rest), prompts, net(generation_part, rest, after), -1, generated)


def test_the_record_of_a_measurement() -> None:
    parts = energies([3.0, 7.0, 3.2, 7.2, 3.0])
    windows = [net(parts[1], parts[0], parts[2]), net(parts[3], parts[2], parts[4])]
    record = measured(FACTS, windows, 1000, events=("2 of 900 readings failed",))
    assert (record.method, record.scope, record.sensor, record.rate_hz) == (
        "measured",
        "board",
        "ina226 (hwmon2)",
        10.0,
    )
    assert record.gross_j == pytest.approx(14.2 * 18)
    assert record.net_j == pytest.approx((14.2 - 3.1 * 2) * 18)
    assert record.idle_w == pytest.approx(3.1)
    assert record.per_inference_j == pytest.approx(8.0 * 18 / 1000)
    assert record.uncertainty_j == pytest.approx(sum(window.uncertainty_j for window in windows) / 1000)
    assert record.standard_j == pytest.approx(math.hypot(*(window.standard_j for window in windows)) / 1000)
    assert record.reliable
    assert record.notes == ("not seen: what is not wired behind its shunt", "2 of 900 readings failed")
    assert json.loads(json.dumps(asdict(record)))["windows"][1]["gross_j"] == pytest.approx(7.2 * 18)


def test_a_record_without_idle_is_gross_and_says_so() -> None:
    record = measured(FACTS, energies([7.0], part_s=5.0), 10)
    assert (record.net_j, record.idle_w) == (None, None)
    assert record.per_inference_j == pytest.approx(7.0 * 3 / 10)
    assert not record.reliable
    assert any(note.startswith("not to be relied on: ") for note in record.notes)
    assert any("includes it" in note for note in record.notes)
    with pytest.raises(MeterError, match="makes no sense"):
        measured(FACTS, [], 10)


def test_no_sensor_is_not_measured_and_not_zero() -> None:
    record = not_measured("no sensor")
    assert (record.method, record.per_inference_j, record.gross_j, record.notes) == (
        "not measured",
        None,
        None,
        ("no sensor",),
    )
    assert not record.reliable


def test_a_model_is_marked_and_tells_what_it_assumes() -> None:
    pi = load("raspberry-pi-5")
    record = modelled(pi, busy_s=2.0, inferences=100)
    assert (record.method, record.scope, record.sensor, record.uncertainty_j) == ("modelled", None, None, None)
    assert record.gross_j == pytest.approx(12.7 * 2)
    assert record.net_j == pytest.approx((12.7 - 2.8) * 2)
    assert record.per_inference_j == pytest.approx((12.7 - 2.8) * 2 / 100)
    assert any("HPL on four cores, at the wall" in note for note in record.notes)
    with pytest.raises(MeterError, match="no power under load"):
        modelled(load("x86-64"), 1.0, 1)
    with pytest.raises(MeterError, match="makes no sense"):
        modelled(pi, 0.0, 1)
