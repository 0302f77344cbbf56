"""Bundles that translate, for the runtime ``fake``, and a plain beam search to hold the real one to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bundle_factory import make_byte_tokenizer, make_generating_bundle

from edgelm.bundle import (
    Artifact,
    BundleWriter,
    CacheRecord,
    Parity,
    Port,
    RuntimeRecord,
    Signature,
    TokenizerRecord,
    TranslationRecord,
    open_bundle,
    write_golden,
)
from edgelm.bundle.manifest import AudioRecord

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Hypothesis", "make_translating_bundle", "plain_beam_search"]

# Ids, the sum of log-probabilities, and whether it has ended in a stop token.
Hypothesis = tuple[tuple[int, ...], float, bool]


def make_translating_bundle(
    folder: Path,
    *,
    name: str = "translator",
    text: bool = True,
    target: Tokenizer | None = None,
    source_length: int = 32,
    target_length: int = 24,
    rows: int | None = None,
    source_prefix: tuple[int, ...] = (),
    source_suffix: tuple[int, ...] = (1,),
    target_prefix: tuple[int, ...] = (0,),
    stop_ids: tuple[int, ...] = (1,),
    suppressed_ids: tuple[int, ...] = (),
    audio: AudioRecord | None = None,
    vocabulary_size: int | None = None,
) -> Path:
    """Make ``folder/name.edgelm``, an encoder-decoder for the runtime ``fake``, and return it.

    Args:
        folder: Exists already.
        name: Of the bundle.
        text: False leaves the tokenizers out.
        target: The tokenizer of answers, where it is not `make_byte_tokenizer`'s, which reads sources.
        source_length: The most source tokens.
        target_length: The most positions.
        rows: Of the decoder; None where they are free.
        source_prefix: As all that follow, of `TranslationRecord`.
        vocabulary_size: Scores of a step; those of the answers' tokenizer without.
    """
    # What does not matter here is a language model's bundle.
    with open_bundle(make_generating_bundle(folder, name=f"{name}-model")) as bundle:
        manifest = bundle.manifest
    tokenizer = make_byte_tokenizer()
    size = vocabulary_size or (target or tokenizer).get_vocab_size()
    read = TokenizerRecord("tokenizer.json", 0, source_length, tokenizer.get_vocab_size())
    output = folder / f"{name}.edgelm"
    with BundleWriter(output, force=False) as writer:
        (writer.folder / "model.onnx").write_bytes(b"not a model: for the runtime 'fake'")
        if text:
            tokenizer.save(str(writer.folder / "tokenizer.json"))
        if text and target is not None:
            target.save(str(writer.folder / "target.json"))
        write_golden(writer.folder, [])
        writer.finish(
            dataclasses.replace(
                manifest,
                name=name,
                task="translate" if audio is None else "transcribe",
                artifacts=(_artifact(size, source_length, target_length, rows),),
                tokenizer=read if text else None,
                files={},
                generation=None,
                translation=TranslationRecord(
                    source_length, target_length, size, source_prefix, source_suffix, target_prefix, stop_ids,
                    suppressed_ids=suppressed_ids, audio=audio,
                    target_tokenizer=TokenizerRecord("target.json", 0, target_length, size) if text and target else None,
                ),
            )
        )  # fmt: skip
    return output


def _artifact(vocabulary_size: int, source_length: int, target_length: int, rows: int | None) -> Artifact:
    cache = CacheRecord(
        1, ("k_{i}", "v_{i}"), ("k_{i}", "v_{i}"), (None, 1, target_length, 2), "float32", target_length
    )
    ids = Port("ids", "int32", (None, None), "token_ids")
    logits = Port("logits", "float32", (None, 1, vocabulary_size), "logits")
    source = Port("source", "int32", (None, source_length), "source_ids")
    return Artifact(
        format="onnx",
        file="model.onnx",
        data_files=(),
        size_bytes=35,
        signatures=(
            Signature("encode", source_length, (source,), (), "encode", rows=rows),
            Signature("decode", 1, (ids,), (logits,), "decode", cache, rows=rows),
        ),
        runtimes=(RuntimeRecord("onnx", "untested", None, "a fake"),),
        parity=Parity(1, "random", 0.0, 1.0, 1e-4, None, None, "nothing was compared"),
        accuracy=None,
        operators={},
    )


def plain_beam_search(
    scores: Callable[[tuple[int, ...]], Any],
    *,
    beams: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    length_penalty: float,
    forbidden: Sequence[int] = (),
) -> Hypothesis:
    """Return the best answer, by the definition alone: every continuation of every beam, computed anew, in sorted lists.

    Args:
        scores: Of the next token, ``(V,)``, after these tokens of the answer.
        beams: As the rest, of `edgelm_runtimes.beam_search`.
    """

    def value(hypothesis: Hypothesis) -> float:
        ids, total, ended = hypothesis
        return total / (len(ids) + ended) ** length_penalty

    open_beams: list[Hypothesis] = [((), 0.0, False)]
    finished: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        everything: list[tuple[float, int, int]] = []
        for place, (ids, total, _) in enumerate(open_beams):
            row = np.array(scores(ids), np.float64)
            row[list(forbidden)] = -np.inf
            row -= row.max()
            row -= np.log(np.exp(row).sum())
            everything += [(-(total + row[token]), place, token) for token in range(len(row)) if row[token] > -np.inf]
        everything.sort()
        for cost, place, token in everything[:beams]:
            if token in stop_ids:
                finished.append((open_beams[place][0], -cost, True))
        going = [entry for entry in everything if entry[2] not in stop_ids][:beams]
        open_beams = [((*open_beams[place][0], token), -cost, False) for cost, place, token in going]
        if length == max_new_tokens:
            finished += open_beams
        finished = sorted(finished, key=value, reverse=True)[:beams]
        if not open_beams or (len(finished) == beams and value(finished[-1]) >= max(map(value, open_beams))):
            break
    return finished[0]
