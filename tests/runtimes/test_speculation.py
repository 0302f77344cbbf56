"""Guessing ahead changes the time, never the answer: token by token where nothing is drawn, in distribution elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgelm_runtimes
import numpy as np
import pytest
from bundle_factory import make_generating_bundle, make_piece_tokenizer
from edgelm_runtimes import Session
from edgelm_runtimes.adapters.fake_causal import FakeCausalProgram, Scores
from edgelm_runtimes.sampling import Candidates, Sampling, draw
from edgelm_runtimes.speculation import Draft, PromptLookup, verify
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import SIZE, counts_up, make_session

from edgelm.errors import InputError


def repeats(seed: int, *, words: int = 5, memory: int = 2) -> Scores:
    """Return scores that are random and depend on the last tokens alone, so that texts repeat and guesses are often right."""

    def scores(ids: Sequence[int]) -> np.ndarray:
        generator = np.random.default_rng([seed, *ids[-memory:]])
        values = np.full(SIZE, -5.0, np.float32)
        values[2 : 2 + words] = generator.normal(size=words) * 2
        return values

    return scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


class Pair:
    """A model and a smaller one, whose scores are changed from test to test."""

    def __init__(self, folder: Path) -> None:
        self.scores: Scores = counts_up
        self.guesses: Scores = counts_up
        self.session = make_session(folder, lambda ids: self.scores(ids), context_length=48)
        self.draft = make_session(folder, lambda ids: self.guesses(ids), context_length=40)

    def how(self, kind: str) -> Any:
        return self.draft if kind == "draft" else kind


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Pair(folder)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(("prompt-lookup", "draft")),
    st.lists(st.integers(2, 6), min_size=1, max_size=20),
    st.integers(1, 60),
    st.sampled_from((1.0, 1.3)),
    st.sampled_from((None, 4)),
)
def test_the_likeliest_tokens_are_the_same(
    pair: Pair, seed: int, kind: str, prompt: list[int], count: int, penalty: float, window: int | None
) -> None:
    pair.scores = repeats(seed)
    pair.guesses = repeats(seed, memory=1 + seed % 2)  # the same model, or one that knows less
    options: Any = {"max_new_tokens": count, "repetition_penalty": penalty, "window": window}
    plain = pair.session.generate(prompt, **options).finish()
    guessed = pair.session.generate(prompt, speculate=pair.how(kind), **options).finish()
    assert guessed.ids == plain.ids
    assert (guessed.text, guessed.finish_reason) == (plain.text, plain.finish_reason)
    assert len(guessed.token_s) == len(plain.token_s)
    assert guessed.speculation is not None
    assert guessed.speculation.accepted <= guessed.speculation.proposed


def test_good_guesses_save_steps(pair: Pair) -> None:
    pair.scores = pair.guesses = repeats(3)
    program = pair.session._program
    assert isinstance(program, FakeCausalProgram)
    for kind in ("prompt-lookup", "draft"):
        program.calls.clear()
        result = pair.session.generate([2, 3, 4], max_new_tokens=30, speculate=pair.how(kind)).finish()
        assert result.speculation is not None
        assert result.speculation.accepted > 10
        assert len(program.calls) == 30 - result.speculation.accepted
        if kind == "draft":
            assert result.speculation.accepted == result.speculation.proposed


@pytest.mark.parametrize("kind", ["off", "prompt-lookup", "draft"])
def test_what_is_drawn_is_distributed_alike(pair: Pair, kind: str) -> None:
    """The third token of an answer, which depends on both before it, against its exact distribution."""
    pair.scores, pair.guesses = repeats(5, words=3, memory=1), repeats(6, words=3, memory=1)
    prompt = [2, 3, 4, 2, 3, 2, 4, 3, 2, 2, 3]  # every pair was there: there is always a guess
    sampling: Any = {"temperature": 1.5, "top_k": 3}
    count = 3_000
    found = np.zeros(3)
    for seed in range(count):
        result = pair.session.generate(
            prompt, max_new_tokens=3, seed=seed, speculate=pair.how(kind), **sampling
        ).finish()
        found[result.ids[2] - 2] += 1
    expected = np.zeros(3)
    for first in range(3):
        for second in range(3):
            expected += share(pair, 3, first) * share(pair, 2 + first, second) * shares(pair, 2 + second)
    statistic = float(((found - count * expected) ** 2 / (count * expected)).sum())
    assert statistic < 13.82  # chi-square with 2 degrees of freedom, exceeded once in 1,000


def shares(pair: Pair, last: int) -> np.ndarray:
    values = pair.scores([last])[2:5].astype(np.float64) / 1.5
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def share(pair: Pair, last: int, place: int) -> float:
    return float(shares(pair, last)[place])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_one_guess_leaves_the_distribution_as_it_is(seed: int, point: bool) -> None:
    """`verify` alone, for random distributions of model and guess that overlap in part."""
    generator = np.random.default_rng(seed)
    scores = np.full(8, -np.inf, np.float32)
    known = generator.choice(8, size=5, replace=False)
    scores[known] = generator.normal(size=5)
    rows = np.stack([scores, scores])
    choice = Candidates(np.flatnonzero(generator.random(8) < 0.6), np.ones(0))
    if not choice.ids.size:
        choice = Candidates(np.array([0]), np.ones(0))
    weights = generator.random(choice.ids.size)
    choice = Candidates(choice.ids, weights / weights.sum())
    count = 3_000
    found = np.zeros(8)
    for _ in range(count):
        guess = int(choice.ids[0]) if point else draw(choice, generator)
        draft = Draft((guess,), None if point else (choice,))
        found[verify(rows, draft, Sampling(1.0), generator, None)[0]] += 1
    expected = np.exp(scores.astype(np.float64))
    expected *= count / expected.sum()
    assert found[expected == 0].sum() == 0
    statistic = float(((found - expected)[expected > 0] ** 2 / expected[expected > 0]).sum())
    # Chi-square with 4 degrees of freedom, exceeded once in 10 million: over all examples, practically never.
    assert statistic < 38.0


class TestPromptLookup:
    def test_the_longest_repetition_that_was_last(self) -> None:
        lookup = PromptLookup()
        assert lookup.propose([1, 2, 3, 9, 2, 3, 8, 2, 3], 2, None).ids == (8, 2)
        assert lookup.propose([1, 2, 3, 9, 2, 3, 8, 2, 3, 7, 1, 2, 3], 4, None).ids == (9, 2, 3, 8)
        assert lookup.propose([1, 2], 4, None).ids == ()
        assert lookup.propose([5, 5, 5, 5], 4, None).ids == (5,)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 5))
    def test_against_a_search_from_the_end(self, ids: list[int], count: int) -> None:
        lookup = PromptLookup()
        for end in range(1, len(ids) + 1):
            assert lookup.propose(ids[:end], count, None).ids == _search(ids[:end], count)


def _search(ids: list[int], count: int) -> tuple[int, ...]:
    for length in (3, 2):
        for end in range(len(ids) - 1, length - 1, -1):
            if len(ids) >= length and ids[end - length : end] == ids[-length:]:
                return tuple(ids[end : end + count])
    return ()


class TestRefusals:
    def test_another_tokenizer(self, folder: Path, pair: Pair) -> None:
        other = make_session(folder, tokenizer=make_piece_tokenizer(), stop_ids=(2,))
        with pytest.raises(InputError, match="has another tokenizer"):
            pair.session.generate([5], speculate=other)

    def test_itself(self, pair: Pair) -> None:
        with pytest.raises(InputError, match="speculate is the session itself"):
            pair.session.generate([5], speculate=pair.session)

    def test_a_classifier(self, tmp_path: Path, pair: Pair) -> None:
        from bundle_factory import make_classifier_bundle

        with (
            edgelm_runtimes.load(make_classifier_bundle(tmp_path, fake_files=True), runtime="fake") as other,
            pytest.raises(InputError, match="which does not generate"),
        ):
            pair.session.generate([5], speculate=other)


def test_two_models_that_guess_for_each_other_do_not_wait_for_ever(pair: Pair) -> None:
    import threading

    pair.scores = pair.guesses = counts_up

    def ask(one: Session, other: Session) -> None:
        for _ in range(20):
            one.generate([5], max_new_tokens=5, speculate=other).finish()

    threads = [
        threading.Thread(target=ask, args=pair_, daemon=True)
        for pair_ in ((pair.session, pair.draft), (pair.draft, pair.session))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_cancelling_while_the_smaller_model_computes(pair: Pair) -> None:
    pair.scores = counts_up
    answer = None

    def cancels(ids: Sequence[int]) -> np.ndarray:
        assert answer is not None
        answer.cancel()
        return counts_up(ids)

    pair.guesses = cancels
    answer = pair.session.generate([5], max_new_tokens=20, speculate=pair.draft)
    assert answer.finish().finish_reason == "cancelled"
    assert answer.result.ids == (6,)


def test_a_bundle_from_disk_guesses(tmp_path: Path) -> None:
    with (
        edgelm_runtimes.load(make_generating_bundle(tmp_path), runtime="fake") as session,
        edgelm_runtimes.load(make_generating_bundle(tmp_path, name="small"), runtime="fake") as small,
    ):
        result = session.generate("the", max_new_tokens=9, speculate=small).finish()
        assert result.speculation is not None
        assert result.speculation.accepted == result.speculation.proposed > 0
