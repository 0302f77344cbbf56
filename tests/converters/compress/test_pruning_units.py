"""Cutting, ranking and refitting by themselves, against the definitions and NumPy's own least squares."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from edgelm_converters.compress.calibrate import HALVES, Half, last_linear, stack_of, with_last, with_layers
from edgelm_converters.compress.correction import MomentSum, fit_error, ridge_of, rows_of, solve, with_rows
from edgelm_converters.compress.importance import (
    allocate,
    rank_by_activation,
    rank_by_magnitude,
    rank_by_surgery,
)
from edgelm_converters.compress.pruning_units import input_rows, keep_units, units_of
from edgelm_converters.compress.sparsity import sparsify, sparsify_by_magnitude
from edgelm_converters.spec import Linear, TransformerSpec
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_inputs, random_spec

from edgelm.errors import RecipeError

SPECS: dict[str, TransformerSpec] = {
    "post-norm": random_spec(heads=4, width=16),
    "pre-norm, shared key heads": random_spec(
        heads=6, kv_heads=3, head_dim=4, norm_placement="pre", final_norm=True, gated=True, pooling="first"
    ),
    "no biases": random_spec(heads=4, biases=False, activation="relu"),
    "decoder in groups": random_decoder(heads=8, kv_heads=4, head_dim=8),
    "decoder, norms of queries and keys": random_decoder(query_key_norm=True, post_norms=True, windows=(3, None)),
    "decoder, biases": random_decoder(
        norm="layer", positions=64, biases=True, gated=False, kv_heads=4, activation="gelu_tanh"
    ),
}


def _inputs_at_zero(spec: TransformerSpec, half: Half, rows: NDArray[np.intp]) -> TransformerSpec:
    """Return a model whose first layer ignores some inputs of the last kernel of a half."""
    first, *others = stack_of(spec).layers
    linear = last_linear(first, half)
    kernel = linear.kernel.copy()
    kernel[rows] = 0
    return with_layers(spec, [with_last(first, half, dataclasses.replace(linear, kernel=kernel)), *others])


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", SPECS)
def test_what_is_cut_out_is_what_counts_for_nothing(name: str, half: Half) -> None:
    spec = SPECS[name]
    first, *others = stack_of(spec).layers
    units = units_of(first, half)
    gone, kept = np.arange(units)[:1], np.arange(units)[1:]
    smaller = with_layers(spec, [keep_units(first, half, kept), *others])
    inputs = random_inputs(spec, 9)
    expected = forward(_inputs_at_zero(spec, half, input_rows(first, half, gone)), inputs)
    # The same sums in float64, without terms that are 0.
    np.testing.assert_allclose(forward(smaller, inputs), expected, rtol=1e-10, atol=1e-12)
    assert np.abs(expected - forward(spec, inputs)).max() > 1e-4


def test_nothing_is_copied_where_everything_stays() -> None:
    layer = SPECS["post-norm"].encoder.layers[0]
    assert keep_units(layer, "attention", np.arange(4)).attention is layer.attention
    assert keep_units(layer, "feed_forward", np.arange(32)).feed_forward is layer.feed_forward


def _problem(
    inputs: int, outputs: int, *, bias: bool, seed: int = 0
) -> tuple[Linear, NDArray[np.float32], NDArray[np.float32]]:
    """Return a kernel, inputs that hang together, and wanted outputs that the kernel gives roughly."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((inputs, inputs)) / inputs**0.5
    x = ((generator.standard_normal((300, inputs)) + 0.3) @ mixing).astype(np.float32)
    kernel = generator.standard_normal((inputs, outputs)).astype(np.float32)
    linear = Linear("kernel", kernel, generator.standard_normal(outputs).astype(np.float32) if bias else None)
    wanted = x @ kernel + 0.3 * generator.standard_normal((300, outputs))
    return linear, x, (wanted + (linear.bias if linear.bias is not None else 0)).astype(np.float32)


def _fit(linear: Linear, x: NDArray[np.float32], wanted: NDArray[np.float32]) -> Any:
    moments = MomentSum(linear)
    for start in range(0, len(x), 77):
        moments.add(x[start : start + 77], wanted[start : start + 77])
    return moments.mean()


def _system(linear: Linear, x: Any, wanted: Any, weight: float) -> tuple[Any, Any]:
    """Return A and B, of which the ridge regression is the least squares |A W - B|."""
    rows = rows_of(linear)
    constant = [] if linear.bias is None else [np.ones((len(x), 1))]
    left = np.concatenate([x.astype(np.float64), *constant], axis=1) / len(x) ** 0.5
    return (
        np.concatenate([left, weight**0.5 * np.eye(len(rows))]),
        np.concatenate([wanted.astype(np.float64) / len(x) ** 0.5, weight**0.5 * rows]),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 0.01, 1.0])
def test_solution_is_that_of_numpys_least_squares(ridge: float, bias: bool) -> None:
    linear, x, wanted = _problem(12, 5, bias=bias)
    fit = _fit(linear, x, wanted)
    A, B = _system(linear, x, wanted, ridge_of(fit, ridge))
    expected = np.linalg.lstsq(A, B, rcond=None)[0]
    # Normal equations lose the square of the condition: at most 1e6 here, of 1e-16.
    np.testing.assert_allclose(solve(fit, rows_of(linear), ridge=ridge), expected, rtol=1e-8, atol=1e-8)
    assert with_rows(linear, expected).name == linear.name


@pytest.mark.parametrize("ridge", [1e-6, 0.01, 1.0, 100.0])
def test_refitting_is_never_worse_than_leaving_it(ridge: float) -> None:
    for seed in range(10):
        linear, x, wanted = _problem(10, 4, bias=seed % 2 == 0, seed=seed)
        fit, rows = _fit(linear, x, wanted), rows_of(linear)
        kept = np.array([0, 2, 3, 7, *([10] if linear.bias is not None else [])])
        assert fit_error(fit.of(kept), solve(fit.of(kept), rows[kept], ridge=ridge)) <= fit_error(
            fit.of(kept), rows[kept]
        )


def test_error_is_the_share_of_what_is_wanted() -> None:
    linear, x, wanted = _problem(10, 4, bias=True)
    answer = x @ linear.kernel + linear.bias
    expected = np.square(wanted - answer).sum() / np.square(wanted).sum()
    assert fit_error(_fit(linear, x, wanted), rows_of(linear)) == pytest.approx(expected, rel=1e-4)  # float32 answers


@pytest.mark.parametrize(("units", "width"), [(90, 1), (6, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_surgeon_takes_what_costs_least_each_time(units: int, width: int, bias: bool) -> None:
    linear, x, wanted = _problem(units * width, 4, bias=bias)
    fit, removed = _fit(linear, x, wanted), units - 3  # 87 of 90: more than are gathered before the inverse is changed
    ranking = rank_by_surgery(fit, rows_of(linear), units, removed, ridge=0.01)
    A, B = _system(linear, x, wanted, ridge_of(fit, 0.01))

    def loss(left: list[int]) -> float:
        columns = [unit * width + place for unit in left for place in range(width)] + ([units * width] if bias else [])
        part = A[:, columns]
        return float(np.square(B - part @ np.linalg.lstsq(part, B, rcond=None)[0]).sum())

    left = list(range(units))
    for unit, cost in zip(ranking.order, ranking.costs, strict=True):
        before = loss(left)
        if len(left) in (units, 20, 7, 6, 5, 4):  # all of them would take seconds
            losses = [loss([other for other in left if other != gone]) for gone in left]
            assert left[int(np.argmin(losses))] == unit
        left.remove(int(unit))
        assert loss(left) - before == pytest.approx(cost, rel=1e-6)
    np.testing.assert_array_equal(ranking.kept(removed, units), left)


def test_activation_score_is_what_a_unit_adds() -> None:
    linear, x, wanted = _problem(6, 4, bias=True)
    added = [np.square(x[:, [u, u + 1]] @ linear.kernel[[u, u + 1]]).sum(axis=1).mean() for u in (0, 2, 4)]
    ranking = rank_by_activation(_fit(linear, x, wanted), rows_of(linear), 3)
    np.testing.assert_allclose(ranking.costs, np.sort(added), rtol=1e-5)  # x @ kernel is float32
    np.testing.assert_array_equal(ranking.order, np.argsort(added))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", SPECS)
def test_magnitude_ranks_a_unit_of_small_weights_first(name: str, half: Half) -> None:
    layer = stack_of(SPECS[name]).layers[0]
    linear = last_linear(layer, half)
    kernel = linear.kernel.copy()
    kernel[input_rows(layer, half, np.array([1]))] *= 1e-3
    ranking = rank_by_magnitude(with_last(layer, half, dataclasses.replace(linear, kernel=kernel)), half)
    assert ranking.order[0] == 1
    assert len(ranking.order) == units_of(layer, half)


def test_the_cheapest_of_all_layers_go_first_and_each_in_its_order() -> None:
    costs = [np.array([1.0, 5.0]), np.array([4.0, 2.0]), np.array([3.0])]
    assert allocate(costs, 2) == [1, 0, 1]
    assert allocate(costs, 3) == [1, 1, 1]
    assert allocate(costs, 4) == [1, 2, 1]  # the 2 behind a 4 costs 4
    assert allocate(costs, 5) == [2, 2, 1]


@pytest.mark.parametrize("inputs", [16, 300])  # a part of a block, and two and a part
@pytest.mark.parametrize("bias", [True, False])
def test_in_each_four_inputs_two_weights_stay(inputs: int, bias: bool) -> None:
    linear, x, wanted = _problem(inputs, 6, bias=bias)
    for sparse in (
        sparsify(linear, _fit(linear, x, wanted), 0.5, pattern=True),
        sparsify_by_magnitude(linear, 0.5, pattern=True),
    ):
        zeros = (sparse.kernel.reshape(-1, 4, 6) == 0).sum(axis=1)
        np.testing.assert_array_equal(zeros, 2)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_is_at_zero_and_the_rest_makes_up_for_it(share: float) -> None:
    linear, x, _ = _problem(256, 6, bias=True)
    x[:, 64:] = 0.1 * x[:, 64:] + x[:, :64] @ x[:64, 64:]  # what most inputs say, 64 of them say too
    wanted = x @ linear.kernel + linear.bias
    fit = _fit(linear, x, wanted)
    sparse, cut = sparsify(linear, fit, share), sparsify_by_magnitude(linear, share)
    for answer in (sparse, cut):
        np.testing.assert_array_equal((answer.kernel == 0).sum(axis=0), round(share * 256))
    assert fit_error(fit, rows_of(sparse)) < fit_error(fit, rows_of(cut))
    assert cut.bias is not None
    np.testing.assert_array_equal(cut.bias, linear.bias)


def test_weights_that_nothing_hangs_together_with_stay_as_they_are() -> None:
    generator = np.random.default_rng(1)
    x = np.linalg.qr(generator.standard_normal((64, 8)))[0].astype(np.float32)  # orthogonal inputs
    linear = Linear("kernel", generator.standard_normal((8, 3)).astype(np.float32), None)
    sparse = sparsify(linear, _fit(linear, x, x @ linear.kernel), 0.5)
    expected = sparsify_by_magnitude(linear, 0.5)
    # Of float32 inputs that are orthogonal to 1e-7.
    np.testing.assert_allclose(sparse.kernel, expected.kernel, atol=1e-5)


def test_fours_need_inputs_in_fours() -> None:
    linear, x, wanted = _problem(10, 4, bias=False)
    for call in (
        lambda: sparsify(linear, _fit(linear, x, wanted), 0.5, pattern=True),
        lambda: sparsify_by_magnitude(linear, 0.5, pattern=True),
    ):
        with pytest.raises(RecipeError, match="needs inputs in fours, and 'kernel' has 10"):
            call()
