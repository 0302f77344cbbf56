from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_runtimes.adapters.fake_seq2seq import FakeSeq2SeqProgram
from edgelm_runtimes.beam_search import Beams, beam_search
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_seq2seq
from edgelm_runtimes.row_decoding import Answer, Target, decode_rows
from edgelm_runtimes.sampling import Sampling
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from edgelm_runtimes.target_scores import best_tokens, log_normalisers
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import forward
from spec_factory import random_pair, random_seq2seq
from translation_factory import plain_beam_search

from edgelm.errors import ExecutionError

VOCABULARY = 12


def toy(seed: int, sharpness: float = 1.0) -> Any:
    """Return scores of a model without caches: of the source, and of the last two tokens and the length."""
    generator = np.random.default_rng(seed)
    by_source, by_last, by_second, by_length = (generator.normal(size=(VOCABULARY, VOCABULARY)) for _ in range(4))

    def scores(source: Any, ids: Any) -> Any:
        ids = list(ids)
        total = by_source[list(source)].sum(0) + by_last[ids[-1]] + by_length[len(ids) % VOCABULARY]
        if len(ids) > 1:
            total = total + by_second[ids[-2]]
        return (sharpness * total).astype(np.float32)

    return scores


def target(length_penalty: float = 1.0, max_new_tokens: int = 8, stops: Any = (1,), forbidden: Any = ()) -> Target:
    return Target((0,), frozenset(stops), np.array(forbidden, np.int64), max_new_tokens, length_penalty)


def search(program: Seq2SeqProgram, sources: Any, wanted: Target, beams: int) -> list[Beams]:
    batch = np.zeros((len(sources), max(map(len, sources))), np.int32)
    for row, source in zip(batch, sources, strict=True):
        row[: len(source)] = source
    program.encode(batch, np.array([len(source) for source in sources], np.int32), beams)
    found = [Beams() for _ in sources]
    for _ in beam_search(program.forward, program.reorder, wanted, found, beams):
        pass
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    sharpness=st.sampled_from([0.3, 1.0, 2.0]),
    beams=st.integers(1, 5),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0, -1.0]),
    stops=st.sampled_from([(1,), (1, 5), (), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)]),
    forbidden=st.sampled_from([(), (4, 7)]),
)
@settings(max_examples=150, deadline=None)
def test_it_finds_what_the_definition_finds(
    seed: int, sharpness: float, beams: int, length_penalty: float, stops: Any, forbidden: Any
) -> None:
    scores = toy(seed, sharpness)
    sources = [[2, 3, 4], [5], [6, 6, 2, 9]]
    program = FakeSeq2SeqProgram(VOCABULARY, 8, 16, scores=scores)
    wanted = target(length_penalty, stops=stops, forbidden=forbidden)
    found = search(program, sources, wanted, beams)
    for source, each in zip(sources, found, strict=True):
        ids, total, ended = plain_beam_search(
            lambda ids, source=source: scores(source, (0, *ids)),
            beams=beams, stop_ids=stops, max_new_tokens=8, length_penalty=length_penalty, forbidden=forbidden,
        )  # fmt: skip
        best = each.best(wanted)
        assert tuple(best.ids) == ids
        assert best.reason == ("stop_token" if ended else "length")
        # Sums of 8 float32 scores: the exponentials are summed in float64, each is off by 2^-24 of scores up to 30.
        assert best.log_probability == pytest.approx(total, abs=8 * 30 * 2**-24)


@pytest.mark.parametrize("seed", range(5))
def test_with_beams_for_every_answer_it_is_exhaustive(seed: int) -> None:
    scores = toy(seed)
    # Without a penalty and with room for all, the best of all answers: every sequence, and its probability.
    wanted = target(0.0, max_new_tokens=2)
    program = FakeSeq2SeqProgram(VOCABULARY, 8, 16, scores=scores)
    (found,) = search(program, [[2, 3]], wanted, VOCABULARY**2)

    def log_probability(ids: tuple[int, ...]) -> float:
        total = 0.0
        for place, token in enumerate(ids):
            row = scores([2, 3], (0, *ids[:place])).astype(np.float64)
            total += row[token] - np.log(np.exp(row).sum())
        return total

    others = [token for token in range(VOCABULARY) if token != 1]
    answers = [(1,), *((first, 1) for first in others), *itertools.product(others, others)]
    best = max(answers, key=log_probability)
    made = found.best(wanted)
    assert (*made.ids, *([1] if made.reason == "stop_token" else [])) == best


def test_it_ends_when_no_open_beam_is_better() -> None:
    def scores(source: Any, ids: list[int]) -> Any:
        row = np.full(VOCABULARY, -9.0)
        row[1 if len(ids) >= 3 else 2] = 9.0
        row[3] = 1.0
        return row

    program = FakeSeq2SeqProgram(VOCABULARY, 8, 64, scores=scores)
    (found,) = search(program, [[2]], target(max_new_tokens=50), 2)
    assert found.best(target()).ids == [2, 2]
    assert found.done
    assert len(program.calls) < 10


def test_the_caches_go_where_the_beams_go() -> None:
    # The fake's scores hang on what its rows hold: a beam with another's cache would answer otherwise.
    scores = toy(3)
    program = FakeSeq2SeqProgram(VOCABULARY, 8, 16, scores=scores)
    (found,) = search(program, [[2, 3]], target(stops=(), max_new_tokens=6), 4)
    assert {(0, *answer.ids[:5]) for answer in found.finished} <= {tuple(row) for row in program.rows}
    assert len({tuple(answer.ids) for answer in found.finished}) == 4
    assert [call[2] for call in program.calls] == [1] * 6


def test_a_search_that_is_stopped_keeps_what_it_has() -> None:
    program = FakeSeq2SeqProgram(VOCABULARY, 8, 16, scores=toy(0))
    program.encode(np.array([[2]], np.int32), np.array([1], np.int32), 3)
    found = [Beams()]
    left = [3]

    def forward_three_times(ids: Any, start: int) -> Any:
        left[0] -= 1
        return program.forward(ids, start) if left[0] >= 0 else None

    for _ in beam_search(forward_three_times, program.reorder, target(stops=()), found, 3):
        pass
    assert not found[0].done
    assert len(found[0].best(target()).ids) == 3
    assert found[0].best(target()).reason is None


@pytest.mark.parametrize("seed", range(4))
def test_rows_take_the_likeliest_token_each_for_itself(seed: int) -> None:
    scores = toy(seed)
    sources = [[2, 3, 4], [5], [6, 6, 2, 9]]
    program = FakeSeq2SeqProgram(VOCABULARY, 8, 16, scores=scores)
    batch = np.array([[2, 3, 4, 0], [5, 0, 0, 0], [6, 6, 2, 9]], np.int32)
    program.encode(batch, np.array([3, 1, 4], np.int32), 1)
    answers = [Answer() for _ in sources]
    for _ in decode_rows(program.forward, target(), answers, Sampling()):
        pass
    for source, answer in zip(sources, answers, strict=True):
        ids, total, ended = plain_beam_search(
            lambda ids, source=source: scores(source, (0, *ids)),
            beams=1, stop_ids=(1,), max_new_tokens=8, length_penalty=1.0,
        )  # fmt: skip
        # One beam goes on behind a stop token only where another token is likelier; the likeliest token alone decides here.
        assert tuple(answer.ids) == ids
        assert answer.log_probability == pytest.approx(total, abs=1e-4)
        assert answer.reason == ("stop_token" if ended else "length")


def test_what_is_drawn_does_not_hang_on_the_batch() -> None:
    scores = toy(1, 0.3)

    def drawn(sources: list[int], seed: int) -> list[list[int]]:
        program = FakeSeq2SeqProgram(VOCABULARY, 8, 16, scores=scores)
        program.encode(np.array([[token] for token in sources], np.int32), np.ones(len(sources), np.int32), 1)
        answers = [Answer() for _ in sources]
        for _ in decode_rows(program.forward, target(stops=()), answers, Sampling(temperature=1.0, seed=seed)):
            pass
        return [answer.ids for answer in answers]

    assert drawn([2, 3, 4], 7) == [drawn([source], 7)[0] for source in (2, 3, 4)]
    assert drawn([2], 7) != drawn([2], 8)


def test_log_probabilities() -> None:
    scores = np.array([[1.0, 2.0, 3.0], [1000.0, 1000.0, -np.inf]], np.float32)
    wanted = [np.log(np.exp([1.0, 2.0, 3.0]).sum()), 1000 + np.log(2)]
    np.testing.assert_allclose(log_normalisers(scores), wanted, rtol=1e-6)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ExecutionError, match=f"answered with {bad} among its scores: check the bundle"):
            log_normalisers(np.full((1, 3), bad, np.float32))


def test_best_tokens() -> None:
    scores = np.array([1, 5, 3, 5, 3, 0], np.float32)
    assert best_tokens(scores, 1).tolist() == [1]
    assert best_tokens(scores, 3).tolist() == [1, 3, 2]
    assert best_tokens(scores, 9).tolist() == [1, 3, 2, 4, 0, 5]
    allowed = np.array([-np.inf, 2, -np.inf], np.float32)
    assert best_tokens(allowed, 2).tolist() == [1, 0]


def test_a_real_file_is_searched_like_the_definition(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from edgelm_converters.emit.onnx_seq2seq import DECODER_FILE, emit_onnx_seq2seq

    spec = random_seq2seq(tied=True, embedding_norm=True)
    assert spec.source is not None
    signatures = emit_onnx_seq2seq(spec, tmp_path, recipe="fp32", target_length=12)
    program = open_seq2seq("onnx", tmp_path / DECODER_FILE, signatures, ProgramOptions(threads=1))
    pairs = [random_pair(spec, length, 1, seed=length) for length in (9, 5)]
    wanted = target(max_new_tokens=6, stops=(1, 40, 41, 42))
    found = search(program, [pair[spec.source.input][0].tolist() for pair in pairs], wanted, 3)
    program.close()
    for pair, each in zip(pairs, found, strict=True):

        def scores(ids: tuple[int, ...], pair: Any = pair) -> Any:
            return forward(spec, {**pair, spec.token_input: np.array([[0, *ids]])})[0, -1]

        ids, total, _ = plain_beam_search(
            scores, beams=3, stop_ids=(1, 40, 41, 42), max_new_tokens=6, length_penalty=1.0
        )
        best = each.best(wanted)
        assert tuple(best.ids) == ids
        assert best.log_probability == pytest.approx(total, abs=6 * 6.8e-4)
