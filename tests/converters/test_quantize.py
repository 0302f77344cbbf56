from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgelm_converters.emit.quantize import (
    check_finite,
    quantize_weight,
    stored_form,
    weight_recipe,
    worth_quantizing,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from spec_factory import random_spec

from edgelm.errors import ModelError, RecipeError

# No larger than half of float32's range: the step times 127 must not overflow on the way back.
FINITE = st.floats(-(2.0**126), 2.0**126, width=32)
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=FINITE)


@given(MATRICES, st.data())
def test_error_is_at_most_half_a_step(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-weight.ndim, weight.ndim - 1))
    values, scale = quantize_weight(weight, axis)
    assert values.dtype == np.int8
    assert values.shape == weight.shape
    assert scale.dtype == np.float32
    assert scale.shape == (weight.shape[axis],)
    assert (scale >= np.finfo(np.float32).tiny).all()
    assert values.min() >= -127
    steps = scale.astype(np.float64).reshape([-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)])
    error = np.abs(values * steps - weight.astype(np.float64))
    # Half a step, and the float32 rounding of the division: 127 steps times 2^-24, twice (scale, quotient).
    assert (error <= steps * (0.5 + 2 * 127 * 2**-24)).all()


@given(arrays.arrays(np.float32, (4, 6), elements=st.floats(-10, 10, width=32)))
def test_channels_do_not_see_each_other(weight: np.ndarray) -> None:
    values, scale = quantize_weight(weight, 1)
    for column in range(6):
        alone, alone_scale = quantize_weight(weight[:, column : column + 1], 1)
        np.testing.assert_array_equal(values[:, column : column + 1], alone)
        np.testing.assert_array_equal(scale[column : column + 1], alone_scale)
    rows, row_scale = quantize_weight(weight.T, 0)
    np.testing.assert_array_equal(rows, values.T)
    np.testing.assert_array_equal(row_scale, scale)


def test_the_largest_value_is_exact_and_zeros_stay_zeros() -> None:
    values, scale = quantize_weight(np.array([[2.0, 0.0], [-1.0, 0.0]], np.float32), 1)
    np.testing.assert_array_equal(values, [[127, 0], [-64, 0]])
    np.testing.assert_array_equal(scale, np.array([2 / 127, 1], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(bad: float) -> None:
    weight = np.ones((3, 2), np.float32)
    weight[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(weight, 1)


def test_names_the_weight_that_is_not_finite() -> None:
    spec = random_spec()
    check_finite(spec)
    token = spec.embeddings.token.copy()
    token[3, 2] = np.nan
    broken = replace(spec, embeddings=replace(spec.embeddings, token=token))
    with pytest.raises(ModelError, match=r"embeddings\.token .* 1 NaN or infinite values"):
        check_finite(broken)


def test_only_matrices_of_some_size_are_worth_it() -> None:
    assert worth_quantizing(np.zeros((64, 64), np.float32))
    assert not worth_quantizing(np.zeros((128, 8), np.float32))
    assert not worth_quantizing(np.zeros(100_000, np.float32))


@pytest.mark.parametrize(
    ("recipe", "shape", "forms"),
    [
        ("fp32", (64, 64), ("float32", "float32", "float32")),
        ("fp16", (64, 64), ("float16", "float16", "float16")),
        ("dynamic_wi8_afp32", (64, 64), ("int8", "int8", "float16")),
        ("weight_only_wi8_afp32", (64, 64), ("int8", "int8", "float16")),
        ("dynamic_wi4b32_afp32", (64, 64), ("int4", "int8", "float16")),
        ("dynamic_wi4b64_afp32", (64, 64), ("int4", "int8", "float16")),
        ("dynamic_wi4b64_afp32", (96, 64), ("int8", "int8", "float16")),
        ("dynamic_wi4b128_afp32", (64, 64), ("int8", "int8", "float16")),
        ("dynamic_wi4b32_afp32", (32, 64), ("float32", "float32", "float32")),
    ],
)
def test_a_weight_takes_the_narrowest_form_that_it_may(
    recipe: str, shape: tuple[int, int], forms: tuple[str, str, str]
) -> None:
    assert tuple(stored_form(weight_recipe(recipe), shape, bits) for bits in (4, 8, 16)) == forms


def test_only_recipes_without_calibrated_ranges_are_of_weights() -> None:
    with pytest.raises(RecipeError, match=r"No recipe is called 'static_wi8_ai8'.*Known: dynamic_wi4b128_afp32"):
        weight_recipe("static_wi8_ai8")
