"""A runtime that computes several positions a little differently than one: guessing still gives what decoding gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import make_generating_bundle
from edgelm_runtimes import Session
from edgelm_runtimes.adapters.fake_causal import FakeCausalProgram
from edgelm_runtimes.near_ties import NearTies
from edgelm_runtimes.program import Logits, ProgramFacts
from edgelm_runtimes.sampling import Sampling
from edgelm_runtimes.speculation import Draft
from test_generation import SIZE

from edgelm.bundle import open_bundle
from edgelm.errors import InputError

EPSILON = 1e-3  # how far the scores of several positions lie from those of one
CONTEXT = 64


class UnevenProgram(FakeCausalProgram):
    """Scores are off by up to `EPSILON` where any position so far was computed in a call for the scores of several."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.uneven: list[bool] = []

    def forward(self, ids: np.ndarray, start: int, *, logits: Logits = "last") -> np.ndarray:
        rows = super().forward(ids, start, logits=logits)
        self.uneven[start:] = [logits == "all"] * ids.size
        if not any(self.uneven):
            return rows
        noise = np.random.default_rng([start, *self.ids]).uniform(-EPSILON, EPSILON, rows.shape)
        return (rows + noise).astype(np.float32)


def scores(seed: int) -> Any:
    """Return scores whose likeliest tokens are often nearer to each other than `EPSILON`, and which repeat themselves."""

    def make(ids: Sequence[int]) -> np.ndarray:
        generator = np.random.default_rng([seed, *ids[-2:]])
        values = np.full(SIZE, -5.0, np.float32)
        values[2:6] = generator.choice(4, 4) + generator.uniform(0, EPSILON / 2, 4)
        return values

    return make


def open_uneven(folder: Path, seed: int) -> Session:
    bundle = open_bundle(make_generating_bundle(folder, name=f"uneven{seed}", context_length=CONTEXT))
    program = UnevenProgram(SIZE, CONTEXT, scores=scores(seed))
    return Session(bundle, bundle.manifest.artifacts[0], program)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.2}, {"temperature": 0.7, "top_k": 1}], ids=str)
def test_near_ties_are_settled_as_without_guessing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [2, 3, 4, 2, 3, 5, 4, 3, 2, 2, 3]
    blind = 0
    for seed in range(8):
        with open_uneven(tmp_path, seed) as session:
            ask = {"max_new_tokens": 40, "seed": 1, **options}
            plain = session.generate(prompt, **ask).finish()
            guessed = session.generate(prompt, speculate="prompt-lookup", **ask).finish()
            assert guessed.ids == plain.ids
            assert guessed.speculation is not None
            assert guessed.speculation.accepted <= guessed.speculation.proposed
            with monkeypatch.context() as without:
                without.setattr(NearTies, "first", lambda *arguments: None)
                blind += session.generate(prompt, speculate="prompt-lookup", **ask).finish().ids != plain.ids
    assert blind > 2  # the ties are there


def test_guessing_saves_steps_where_there_are_no_ties(tmp_path: Path) -> None:
    with open_uneven(tmp_path, 0) as session:
        program = session._program
        assert isinstance(program, UnevenProgram)
        # Each token is followed by the next: far ahead of the others.
        program._scores = lambda ids: 10 * np.eye(SIZE, dtype=np.float32)[2 + (ids[-1] - 1) % 5]
        prompt = [2, 3, 4, 5, 6, 2, 3, 4, 5, 6]
        session.generate(prompt, max_new_tokens=1).finish()
        calls = []
        for _ in range(2):
            program.calls.clear()
            result = session.generate(prompt, max_new_tokens=30, speculate="prompt-lookup").finish()
            assert result.speculation is not None
            assert result.speculation.accepted == result.speculation.proposed > 20
            calls.append(len(program.calls))
        # 4 guesses a step: 7 calls; the first step of all is computed a second time, a position a call.
        assert calls == [7 + 5, 7]


class TestNearTies:
    def test_the_largest_difference_counts(self) -> None:
        ties = NearTies()
        rows = np.array([[1.0, 2.0, -np.inf], [1.0, 3.0, -np.inf]], np.float32)
        ties.measure(rows, rows + np.array([[0.25, 0, 0], [0, -0.125, 0]], np.float32))
        assert ties.difference == 0.25

    def test_only_what_would_be_taken_is_in_doubt(self) -> None:
        ties = NearTies()
        ties.difference = 0.2
        near, far = np.array([5.0, 4.7, 0.0], np.float32), np.array([0.0, 1.0, 5.0], np.float32)
        greedy = Sampling()
        assert ties.first(np.stack([far, near]), Draft((2,)), greedy, None) == 1
        assert ties.first(np.stack([near, far]), Draft((2,)), greedy, None) == 0
        # The first guess is refused for certain: what is behind it is never asked for.
        assert ties.first(np.stack([far, near]), Draft((1,)), greedy, None) is None
        assert ties.first(np.stack([far, far]), Draft((2,)), greedy, None) is None

    def test_a_penalty_counts(self) -> None:
        ties = NearTies()
        ties.difference = 0.01
        rows = np.array([[5.0, 2.5, 0.0]], np.float32)
        seen = np.array([True, False, False])
        assert ties.first(rows, Draft(), Sampling(repetition_penalty=2.0), None) is None
        assert ties.first(rows, Draft(), Sampling(repetition_penalty=2.0), seen) == 0


class RoundingProgram(UnevenProgram):
    """Says that it is ONNX Runtime."""

    @property
    def facts(self) -> ProgramFacts:
        return dataclasses.replace(super().facts, runtime="onnx")


def open_rounding(folder: Path, recipe: str) -> Session:
    bundle = open_bundle(make_generating_bundle(folder, name=recipe, context_length=CONTEXT))
    bundle.manifest = dataclasses.replace(bundle.manifest, recipe=recipe)
    return Session(bundle, bundle.manifest.artifacts[0], RoundingProgram(SIZE, CONTEXT, scores=scores(0)))


def test_guessing_is_refused_where_the_likeliest_tokens_could_become_others(tmp_path: Path) -> None:
    prompt = [2, 3, 4, 2, 3, 5, 4, 3, 2, 2, 3]
    with open_rounding(tmp_path, "dynamic_wi8_afp32") as session:
        certain: tuple[Any, ...] = ({}, {"temperature": 0.7, "top_k": 1})
        for options in certain:
            with pytest.raises(InputError, match="may change the likeliest tokens here"):
                session.generate(prompt, speculate="prompt-lookup", **options)
        allowed: tuple[Any, ...] = ({"inexact": True}, {"temperature": 0.7})
        for options in allowed:
            assert session.generate(prompt, max_new_tokens=5, speculate="prompt-lookup", **options).finish().ids
        assert session.generate(prompt, max_new_tokens=5).finish().ids
    with open_rounding(tmp_path, "fp32") as session:
        assert session.generate(prompt, max_new_tokens=5, speculate="prompt-lookup").finish().ids
