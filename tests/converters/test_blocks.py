from __future__ import annotations

import numpy as np
import pytest
from edgelm_converters.emit.blocks import check_grid, pack_pairs, quantize_blocks
from edgelm_converters.spec import Grid
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import ConversionError


def restore(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    outputs, inputs = values.shape
    return (values.reshape(outputs, scale.shape[1], -1) * scale[..., None]).reshape(outputs, inputs).T


@given(st.integers(0, 1000), st.sampled_from([2, 4, 8]), st.sampled_from([16, 32]), st.booleans())
def test_no_worse_than_rounding_to_the_nearest_step(seed: int, bits: int, block: int, positive: bool) -> None:
    kernel = np.random.default_rng(seed).standard_t(4, (64, 24)).astype(np.float32)
    values, scale = quantize_blocks(kernel, bits=bits, block=block, positive=positive)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert values.dtype == np.int8
    assert lowest <= values.min()
    assert values.max() <= highest
    assert (scale > 0).all() or not positive
    plain = np.abs(kernel.T.reshape(24, -1, block)).max(axis=2, keepdims=True) / highest
    rounded = (np.rint(kernel.T.reshape(24, -1, block) / plain) * plain).reshape(24, 64).T
    error = np.square(restore(values, scale) - kernel).sum()
    # Float32 sums of 1536 squares round to about sqrt(1536) * 2^-24 of their size.
    assert error <= np.square(rounded - kernel).sum() * (1 + 1e-5)


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("positive", [True, False])
def test_no_other_scale_is_much_better(positive: bool, block: int) -> None:
    kernel = np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32)
    values, scale = quantize_blocks(kernel, bits=4, block=block, positive=positive)
    blocks = kernel.T.reshape(-1, block)
    signs = (1,) if positive else (1, -1)
    best = np.full(len(blocks), np.inf)
    # Every scale from one that cuts half of the largest value to one that wastes a fifth of the range.
    for share in np.linspace(0.5, 1.2, 281):
        for sign in signs:
            step = sign * share * np.abs(blocks).max(axis=1, keepdims=True) / 7.5
            best = np.minimum(best, np.square(np.clip(np.rint(blocks / step), -8, 7) * step - blocks).sum(axis=1))
    # Eleven scales are tried, each with the least squares of its steps: what lies between them is worth less than 1 %.
    assert np.square(restore(values, scale) - kernel).sum() < 1.01 * best.sum()


@pytest.mark.parametrize("positive", [True, False])
def test_a_weight_on_the_grid_stays_as_it_is(positive: bool) -> None:
    generator = np.random.default_rng(1)
    steps = generator.integers(-8, 8, (10, 4, 32))
    steps[:, :, 0] = -8  # the largest is there
    kernel = (steps * generator.uniform(0.5, 2, (10, 4, 1))).reshape(10, 128).T.astype(np.float32)
    values, scale = quantize_blocks(kernel, bits=4, block=32, positive=positive)
    np.testing.assert_allclose(restore(values, scale), kernel, rtol=1e-6)


def test_zeros_and_what_is_almost_zero() -> None:
    kernel = np.zeros((64, 3), np.float32)
    kernel[:32, 1] = 1e-38
    values, scale = quantize_blocks(kernel, bits=4, block=32, positive=True)
    assert not values.any()
    assert (scale == 1).all()


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ConversionError, match="48 inputs cannot be cut into blocks of 32"):
        quantize_blocks(np.zeros((48, 2), np.float32), bits=4, block=32, positive=True)


def test_pairs_are_the_lower_halves_of_bytes() -> None:
    values = np.array([[-8, 7, 0, -1], [1, 2, 3, 4]], np.int8)
    # Two's complement: -8 is 8, -1 is 15; the first of two stands in the lower half.
    np.testing.assert_array_equal(pack_pairs(values), [[0x78, 0xF0], [0x21, 0x43]])
    np.testing.assert_array_equal(pack_pairs(values + np.int8(8)), [[0xF0, 0x78], [0xA9, 0xCB]])


def test_a_grid_of_other_blocks_is_refused() -> None:
    grid = Grid(np.ones((3, 4), np.float32))
    check_grid(grid, 128, 32)
    with pytest.raises(ConversionError, match="rounded in blocks of 32, and the recipe has blocks of 64"):
        check_grid(grid, 128, 64)
