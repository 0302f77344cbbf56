"""BLEU of an encoder-decoder, greedy: of Keras, which computes everything anew for each token, and of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from numpy.typing import NDArray

from edgelm.bundle import TranslationRecord
from edgelm_converters.frameworks import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgelm_converters.seq2seq_reference import PairScores

__all__ = ["bleu", "greedy_by_keras", "greedy_by_program", "packed_sources"]

Tick = Callable[[int, int], None]

_BATCH = 32


def bleu(answers: Sequence[Sequence[int]], wanted: Sequence[str], tokenizer: Tokenizer) -> float:
    """Return the corpus BLEU of answers in ids, 0 to 100, as sacrebleu has it by default (Post 2018).

    Raises:
        MissingPackageError: sacrebleu is not installed.
    """
    require("sacrebleu", what="--metric bleu")
    import sacrebleu

    texts = tokenizer.decode_batch([list(ids) for ids in answers], skip_special_tokens=True)
    return float(sacrebleu.corpus_bleu([text.strip() for text in texts], [list(wanted)]).score)


def greedy_by_keras(
    scores: PairScores,
    sources: Sequence[NDArray[Any]],
    record: TranslationRecord,
    *,
    limit: int,
    tick: Tick = lambda done, total: None,
) -> list[list[int]]:
    """Return the likeliest tokens of each answer, without those that it begins and ends with, at most `limit` each."""
    answers: list[list[int]] = [[] for _ in sources]
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        lengths = np.array([len(sources[row]) for row in rows], np.int32)
        packed = packed_sources([sources[row] for row in rows], record.padding_id)
        ids = np.tile(np.array(record.target_prefix, np.int32), (len(rows), 1))
        open_rows = np.ones(len(rows), bool)
        while open_rows.any() and ids.shape[1] < min(record.target_length, len(record.target_prefix) + limit):
            last = scores(packed, lengths, ids)[:, -1].copy()
            last[:, list(record.suppressed_ids)] = -np.inf
            chosen = last.argmax(axis=-1).astype(np.int32)
            open_rows &= ~np.isin(chosen, record.stop_ids)
            for place in np.flatnonzero(open_rows):
                answers[rows[place]].append(int(chosen[place]))
            ids = np.concatenate([ids, chosen[:, None]], axis=1)
        tick(min(start + _BATCH, len(order)), len(order))
    return answers


def greedy_by_program(
    program: Seq2SeqProgram, sources: Sequence[NDArray[Any]], record: TranslationRecord, *, limit: int
) -> list[list[int]]:
    """Return the same of a program."""
    answers = []
    for source in sources:
        program.encode(source[None], np.array([len(source)], np.int32), 1)
        ids, start, answer = np.array([record.target_prefix], np.int32), 0, list[int]()
        while start + ids.shape[1] <= record.target_length:
            scores = np.array(program.forward(ids, start)[0])
            scores[list(record.suppressed_ids)] = -np.inf
            start += ids.shape[1]
            chosen = int(scores.argmax())
            if chosen in record.stop_ids or len(answer) == limit:
                break
            answer.append(chosen)
            ids = np.array([[chosen]], np.int32)
        answers.append(answer)
    return answers


def packed_sources(sources: Sequence[NDArray[Any]], padding: int) -> NDArray[Any]:
    """Return sources side by side, filled up to the longest: ``(B, S)``, or ``(B, S, M)`` of frames."""
    longest = max(len(source) for source in sources)
    first = sources[0]
    packed = np.full((len(sources), longest, *first.shape[1:]), padding if first.ndim == 1 else 0, first.dtype)
    for row, source in enumerate(sources):
        packed[row, : len(source)] = source
    return packed
