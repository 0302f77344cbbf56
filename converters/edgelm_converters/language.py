"""What is needed to write a language model, and what its files are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import GenerationRecord, GoldenCase
from edgelm.errors import InputError
from edgelm_converters.causal_parity import Sequences, surprise
from edgelm_converters.causal_reference import Scores
from edgelm_converters.data import Dataset
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import TransformerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "LanguageModel",
    "choose_context",
    "golden_cases",
    "make_sequences",
]

_DEFAULT_CONTEXT = 1024
_LONGEST_SEQUENCE = 320  # past the shortest of several caches
_MOST_SEQUENCES = (
    16  # 5,000 tokens: a perplexity to half a percent or so, and a minute of Keras for 135 million weights
)
_SCORE_BYTES = 150 * 2**20  # of Keras's scores, kept to be compared one by one
_RANDOM_LENGTHS = (1, 2, 9, 33, 70)
_SEED = 20
_GOLDEN_CASES = 4
_GOLDEN_TOKENS = 64


@dataclass(frozen=True)
class LanguageModel:
    """All that is needed to write a language model's files.

    Attributes:
        spec: The model.
        recipe: How its weights are stored.
        generation: How it is driven.
        tokenizer: None where the artifacts take ids.
        chat_template: The Jinja text; None where there is none.
        caches: Lengths of the caches in a TFLite file, ascending; the last is the context. None chooses.
        prefill: Tokens of a TFLite file's prefill signatures. None chooses.
    """

    spec: TransformerSpec
    recipe: Recipe
    generation: GenerationRecord
    tokenizer: Tokenizer | None
    chat_template: str | None
    caches: tuple[int, ...] | None = None
    prefill: tuple[int, ...] | None = None


def choose_context(spec: TransformerSpec, asked: int | None, carried: int | None) -> tuple[int, tuple[str, ...]]:
    """Return the context length, and a note where it was chosen for the user.

    Args:
        spec: The model.
        asked: What the user wants.
        carried: What the model's preprocessor says.

    Raises:
        InputError: The model has fewer positions than that.
    """
    bound = spec.max_length
    if asked is not None:
        if bound is not None and asked > bound:
            raise InputError(f"--sequence-length {asked} is more positions than the model has: {bound}.")
        if asked < 2:
            raise InputError(f"--sequence-length {asked} leaves no room for an answer: give at least 2.")
        return asked, ()
    chosen = min(length for length in (bound, carried or _DEFAULT_CONTEXT) if length is not None)
    return chosen, (f"Prompt and answer have {chosen} positions together; --sequence-length sets another context.",)


def make_sequences(
    scores: Scores,
    dataset: Dataset | None,
    model: LanguageModel,
    *,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Sequences:
    """Return sequences to compare on, with Keras's scores: of the user's texts, or random valid ids.

    Texts are encoded one by one, and cut into pieces of at most 320 tokens; the first 16 pieces are used.

    Raises:
        InputError: The data hold no texts, or give no sequence of two tokens.
    """
    longest = min(_LONGEST_SEQUENCE, model.generation.context_length)
    ids = (
        _random_ids(model.spec.vocabulary_size, longest)
        if dataset is None
        else _text_ids(dataset, model.tokenizer, longest)
    )
    kept: list[NDArray[np.float32]] = []
    surprises = []
    for done, sequence in enumerate(ids, 1):
        found = scores(sequence)
        surprises.append(surprise(sequence, found))
        if len(kept) == done - 1 and (not kept or sum(rows.nbytes for rows in (*kept, found)) <= _SCORE_BYTES):
            kept.append(found)
        tick(done, len(ids))
    source = "random ids" if dataset is None else dataset.name
    return Sequences(source, "random" if dataset is None else "real", tuple(ids), tuple(kept), tuple(surprises))


def _random_ids(vocabulary: int, longest: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(_SEED)
    lengths = sorted({min(length, longest) for length in (*_RANDOM_LENGTHS, longest)})
    # Id 0 stays out: a Keras model with mask_zero takes it for padding, in the middle of a text too.
    return [generator.integers(min(1, vocabulary - 1), vocabulary, length).astype(np.int32) for length in lengths]


def _text_ids(dataset: Dataset, tokenizer: Tokenizer | None, longest: int) -> list[NDArray[np.int32]]:
    if dataset.texts is None:
        raise InputError(f"{dataset.name} holds arrays; a language model is checked on texts (txt, csv, tsv, jsonl).")
    if tokenizer is None:
        raise InputError(
            f"{dataset.name} holds texts, and there is no tokenizer to turn them into ids: give one with --tokenizer."
        )
    pieces: list[NDArray[np.int32]] = []
    for text in dataset.texts:
        ids = np.asarray(tokenizer.encode(text).ids, np.int32)
        cut = [ids[start : start + longest] for start in range(0, len(ids), longest)]
        pieces += [piece for piece in cut if len(piece) >= 2]
        if len(pieces) >= _MOST_SEQUENCES:
            break
    if not pieces:
        raise InputError(f"{dataset.name} gives no sequence of two tokens: there is nothing to predict in it.")
    return pieces[:_MOST_SEQUENCES]


def golden_cases(sequences: Sequences, tokenizer: Tokenizer | None) -> list[GoldenCase]:
    """Choose a few sequences, short to long, with Keras's scores after their last token: a device checks itself with them."""
    order = sorted(range(len(sequences.scores)), key=lambda index: len(sequences.ids[index]))
    picked = sorted({order[int(place)] for place in np.linspace(0, len(order) - 1, _GOLDEN_CASES)})
    cases = []
    for index in picked:
        count = min(len(sequences.ids[index]), _GOLDEN_TOKENS)
        ids, scores = sequences.ids[index][:count], sequences.scores[index][count - 1]
        text, encoded = _text_of(ids, tokenizer)
        cases.append(
            GoldenCase(text, encoded, {"token_ids": ids[None].astype(np.int32)}, {"logits": scores[None, None]})
        )
    return cases


def _text_of(ids: NDArray[np.int32], tokenizer: Tokenizer | None) -> tuple[str | None, list[int] | None]:
    """Return a text, and the ids that the tokenizer gives for it here: those that it has to give on the device."""
    if tokenizer is None:
        return None, None
    text = tokenizer.decode(ids.tolist())
    if not text.strip():
        return None, None
    encoded = tokenizer.encode(text).ids
    return (text, encoded) if encoded else (None, None)
