from __future__ import annotations

import numpy as np
import pytest
from edgelm_converters.static.ranges import Histogram, Range, Ranges, choose_range, make_steps

from edgelm.errors import ConversionError


def _filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def _values(seed: int = 0) -> np.ndarray:
    """Most values small, a few far away: what activations look like."""
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.standard_normal(20_000), [37.0, -9.0]]).astype(np.float32)


def test_growing_counts_as_at_once() -> None:
    values = _values()
    parts = _filled(*np.array_split(np.sort(np.abs(values)) * np.sign(values), 17))
    whole = _filled(np.sort(np.abs(values)) * np.sign(values))
    assert parts.limit == whole.limit == 64.0
    # A value on the edge of a bin falls into the same one whatever its width: edges of wide bins are edges of narrow ones.
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert (parts.low, parts.high) == (whole.low, whole.high)


def test_bins_hold_what_numpy_counts() -> None:
    values = _values(1)
    found = _filled(values)
    expected, _ = np.histogram(values, bins=len(found.counts), range=(-found.limit, found.limit))
    np.testing.assert_array_equal(found.counts, expected)


def test_minmax_is_exact_and_holds_zero() -> None:
    assert choose_range(_filled(np.array([0.25, 3.7])), "minmax", 8) == Range(0.0, 3.7)
    assert choose_range(_filled(np.array([-5.5, -1.0])), "minmax", 8) == Range(-5.5, 0.0)


def test_percentile_cuts_its_share_at_both_ends() -> None:
    values = np.random.default_rng(3).standard_normal(200_003)
    found = _filled(values)
    chosen = choose_range(found, "percentile", 8)
    width = 2 * found.limit / len(found.counts)
    cut = 0.00005 * len(values)
    # No more than the share is cut off; one bin further in, it would be.
    assert (values < chosen.low).sum() <= cut < (values < chosen.low + width).sum()
    assert (values > chosen.high).sum() <= cut < (values > chosen.high - width).sum()


def test_least_error_is_the_best_of_every_range_tried() -> None:
    values = np.concatenate([np.random.default_rng(5).standard_normal(300_000), [8.0, -8.0]])
    chosen = choose_range(_filled(values), "mse", 8)

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        zero = round(-low / scale)
        steps = np.clip(np.rint(values / scale) + zero, 0, 255)
        return float(np.square((steps - zero) * scale - values).mean())

    shares = np.arange(1, 17) / 16
    best = min(error(values.min() * a, values.max() * b) for a in shares for b in shares)
    # The choice counts a rounding as scale² / 12 and a value as its bin's centre: a few per cent of the error at most.
    assert error(chosen.low, chosen.high) <= 1.05 * best
    # It is worth the name: two outliers of 300,000 do not widen the steps of all others.
    assert error(chosen.low, chosen.high) < 0.7 * error(float(values.min()), float(values.max()))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_zeros_alone_have_a_range(method: Ranges) -> None:
    chosen = choose_range(_filled(np.zeros(5)), method, 8)
    assert chosen == Range(0.0, 0.0)
    assert make_steps(chosen, 8).scale == make_steps(chosen, 16).scale == 1.0


def test_steps_hold_zero_exactly_and_round_by_half_a_step() -> None:
    generator = np.random.default_rng(7)
    for low, high in ((-1.0, 3.0), (0.0, 2.5), (-4.0, 0.0), (-1e-3, 900.0)):
        for bits in (8, 16):
            steps = make_steps(Range(low, high), bits)  # type: ignore[arg-type]
            assert steps.dequantize(steps.quantize(np.zeros(1)))[0] == 0.0
            values = generator.uniform(low, high, 1000)
            # The zero point is rounded, which moves the range's ends by half a step.
            assert np.abs(steps.dequantize(steps.quantize(values)) - values).max() <= steps.scale * 1.001


def test_infinity_is_refused() -> None:
    with pytest.raises(ConversionError, match="overflows"):
        Histogram().add(np.array([1.0, np.inf]), "layer_0/up")
    with pytest.raises(ConversionError, match="never computed"):
        choose_range(Histogram(), "minmax", 8)
