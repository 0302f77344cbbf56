"""Sampling against a slow reference that follows the definitions word by word."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from edgelm_runtimes.sampling import Candidates, Sampling, candidates, draw, probability
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgelm.errors import ExecutionError, InputError

INFINITY = float("inf")


def reference(scores: list[float], sampling: Sampling, seen: set[int]) -> dict[int, float]:
    """Each filter on its own, on all scores, over sorted lists: id -> probability."""
    values = list(scores)
    for token in seen:
        values[token] *= sampling.repetition_penalty if values[token] < 0 else 1 / sampling.repetition_penalty
    if sampling.temperature == 0:
        return {max(range(len(values)), key=lambda token: (values[token], -token)): 1.0}
    values = [value / sampling.temperature for value in values]
    if sampling.top_k:
        least = sorted(values, reverse=True)[min(sampling.top_k, len(values)) - 1]
        values = [value if value >= least else -INFINITY for value in values]
    if sampling.top_p < 1:
        shares = softmax(values)
        above = 0.0
        for token in sorted(range(len(values)), key=lambda token: (-shares[token], token)):
            if above >= sampling.top_p:
                values[token] = -INFINITY
            above += shares[token]
    shares = softmax(values)
    if sampling.min_p > 0:
        values = [
            value if share >= sampling.min_p * max(shares) else -INFINITY
            for value, share in zip(values, shares, strict=True)
        ]
        shares = softmax(values)
    return {token: share for token, share in enumerate(shares) if share > 0}


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    return [weight / sum(weights) for weight in weights]


# Scores with many equal ones, and gaps that no rounding closes.
SCORES = st.lists(st.integers(-40, 40).map(lambda value: value / 4), min_size=2, max_size=200)


@settings(max_examples=300, deadline=None)
@given(
    SCORES,
    st.sampled_from((0.0, 0.5, 1.0, 2.0)),
    st.sampled_from((0, 2, 3, 7, 1000)),
    st.sampled_from((1.0, 0.93, 0.51, 0.07)),
    st.sampled_from((0.0, 0.013, 0.37)),
    st.sampled_from((1.0, 1.5)),
    st.data(),
)
def test_against_the_reference(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, data: Any
) -> None:
    seen = data.draw(st.sets(st.integers(0, len(scores) - 1), max_size=5))
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    mask = np.zeros(len(scores), np.bool_)
    mask[list(seen)] = True
    given_scores = np.array(scores, np.float32)
    choice = candidates(given_scores, sampling, mask)
    assert given_scores.tolist() == scores  # untouched
    found = dict(zip(choice.ids.tolist(), choice.probabilities.tolist(), strict=True))
    expected = reference(scores, sampling, seen)
    # A sum that meets top_p exactly but for rounding may fall on either side.
    assume(set(found) == set(expected) or not _on_the_edge(scores, sampling, seen))
    assert set(found) == set(expected)
    # Scores divided by 1.5 in float32 are off by 2**-24 * 10 / 1.5, over a temperature of 0.5: 1e-6 in the exponent.
    for token, share in expected.items():
        assert found[token] == pytest.approx(share, rel=4e-6)


def _on_the_edge(scores: list[float], sampling: Sampling, seen: set[int]) -> bool:
    """Say whether a little more or less of top_p keeps other tokens, as where many equal ones share."""
    kept = [
        set(reference(scores, Sampling(sampling.temperature, sampling.top_k, share, sampling.min_p,
                                       sampling.repetition_penalty), seen))
        for share in (sampling.top_p - 1e-5, min(sampling.top_p + 1e-5, 1.0))
    ]  # fmt: skip
    return kept[0] != kept[1]


def test_greedy_takes_the_first_of_equal_tokens_and_uses_no_chance() -> None:
    choice = candidates(np.array([1, 5, 5, 2], np.float32), Sampling())
    assert choice.ids.tolist() == [1]
    generator = np.random.default_rng(0)
    assert draw(choice, generator) == 1
    assert generator.random() == np.random.default_rng(0).random()


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    choice = candidates(np.array([1, 3, 3, 3, 0], np.float32), Sampling(1.0, top_k=2))
    assert choice.ids.tolist() == [1, 2, 3]


def test_forbidden_tokens_are_never_drawn() -> None:
    scores = np.full(500, -np.inf, np.float32)
    scores[[7, 9]] = 1
    choice = candidates(scores, Sampling(1.0, top_p=0.999))
    assert {draw(choice, np.random.default_rng(seed)) for seed in range(50)} == {7, 9}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_scores(value: float, temperature: float) -> None:
    scores = np.zeros(10, np.float32)
    scores[3] = value
    with pytest.raises(ExecutionError, match="among its scores"):
        candidates(scores, Sampling(temperature))
    with pytest.raises(ExecutionError, match="-inf among its scores"):
        candidates(np.full(10, -np.inf, np.float32), Sampling(temperature))


def test_the_nucleus_of_a_large_vocabulary() -> None:
    """More tokens than are looked at first; the reference sorts them all."""
    scores = np.random.default_rng(0).normal(size=49_152).astype(np.float32)
    choice = candidates(scores, Sampling(1.0, top_p=0.9))
    shares = np.exp(scores.astype(np.float64) - float(scores.max()))
    shares = np.sort(shares / shares.sum())[::-1]
    needed = int(np.argmax(np.cumsum(shares) >= 0.9)) + 1
    assert choice.ids.size == needed
    assert len(set(choice.ids.tolist())) == needed


def test_what_is_drawn_is_distributed_as_it_should_be() -> None:
    scores = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    choice = candidates(scores, Sampling(1.0))
    generator = np.random.default_rng(1)
    count = 20_000
    drawn = np.bincount([draw(choice, generator) for _ in range(count)], minlength=4)
    expected = count * np.array([0.5, 0.25, 0.15, 0.1])
    statistic = float(((drawn - expected) ** 2 / expected).sum())
    assert statistic < 16.27  # chi-square with 3 degrees of freedom, exceeded once in 1,000 seeds


def test_probability() -> None:
    choice = Candidates(np.array([3, 1]), np.array([0.25, 0.75]))
    assert (probability(choice, 3), probability(choice, 1), probability(choice, 2)) == (0.25, 0.75, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, and has to be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0, and has to be more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -1.0}, "min_p is -1.0"),
        ({"top_k": -1}, "top_k is -1, and has to be a whole number"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"seed": -3}, "seed is -3"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**values)
