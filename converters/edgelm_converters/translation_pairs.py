"""Sources and answers to hold an encoder-decoder's artifacts against: the user's, or random valid ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import GoldenCase
from edgelm.errors import InputError
from edgelm_converters.bleu import greedy_by_keras, packed_sources
from edgelm_converters.data import Dataset, thin
from edgelm_converters.pair_parity import Pairs
from edgelm_converters.translation import TranslationModel

if TYPE_CHECKING:
    from edgelm_converters.seq2seq_reference import PairScores

__all__ = ["make_pairs", "pair_golden", "source_ids"]

Tick = Callable[[int, int], None]
Ids = NDArray[np.int32]

_MOST_PAIRS = 200
_SCORE_BYTES = 150 * 2**20
_RANDOM = ((1, 3), (2, 9), (7, 2), (12, 12), (16, 5), (40, 17), (100, 30))  # lengths of source and target
_WRITTEN = 24  # tokens that Keras answers where the data have no answers
_SEED = 20
_BATCH = 32


def make_pairs(
    scores: PairScores, data: Dataset | None, model: TranslationModel, *, tick: Tick = lambda done, total: None
) -> Pairs:
    """Return pairs with Keras's scores: of the user's texts and their translations, or random valid ids.

    Of a file at most 200 pairs are used, evenly spread. Where it has no translations, Keras's own answers stand in for them.

    Raises:
        InputError: The data hold no texts, or there is no tokenizer for them.
    """
    begun = len(model.record.target_prefix)
    if data is None:
        sources, targets = _random(model)
        name, kind = "random ids", False
    else:
        few = thin(data, _MOST_PAIRS)
        sources = source_ids(few, model)
        name, kind = data.name, True
        targets = _targets(few, model) or [
            np.array([*model.record.target_prefix, *answer], np.int32)
            for answer in greedy_by_keras(scores, sources, model.record, limit=_WRITTEN)
        ]
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(sources), _BATCH):
        if sum(rows.nbytes for rows in found) > _SCORE_BYTES:
            break
        part = slice(start, start + _BATCH)
        lengths = np.array([len(source) for source in sources[part]], np.int32)
        packed = packed_sources(sources[part], model.record.padding_id)
        longest = max(len(ids) for ids in targets[part])
        filled = np.full((len(lengths), longest), model.record.target_prefix[0], np.int32)
        for row, ids in enumerate(targets[part]):
            filled[row, : len(ids)] = ids
        answers = scores(packed, lengths, filled)
        found += [answers[row, : len(ids)] for row, ids in enumerate(targets[part])]
        tick(len(found), len(sources))
    count = len(found)
    return Pairs(
        name, "real" if kind else "random", tuple(sources[:count]), tuple(targets[:count]), tuple(found), begun
    )


def source_ids(data: Dataset, model: TranslationModel) -> list[NDArray[Any]]:
    """Return the texts of a file as a model reads them, cut to its length.

    Raises:
        InputError: The data hold no texts, the model hears instead of reading, or there is no tokenizer.
    """
    record = model.record
    if record.audio is not None:
        raise InputError(f"{data.name} holds texts, and the model hears: leave --calibration and --validation out.")
    if data.texts is None or model.tokenizer is None:
        why = "holds arrays" if data.texts is None else "holds texts, and there is no tokenizer"
        raise InputError(f"{data.name} {why}: an encoder-decoder is checked on texts, with a tokenizer (--tokenizer).")
    room = record.source_length - len(record.source_prefix) - len(record.source_suffix)
    encoded = model.tokenizer.encode_batch(list(data.texts), add_special_tokens=False)
    return [np.array([*record.source_prefix, *entry.ids[:room], *record.source_suffix], np.int32) for entry in encoded]


def _targets(data: Dataset, model: TranslationModel) -> list[Ids]:
    """Return the translations of a file, each ended; none where it has none."""
    tokenizer = model.written_with
    if data.labels is None or tokenizer is None:
        return []
    record = model.record
    room = record.target_length - len(record.target_prefix) - 1
    encoded = tokenizer.encode_batch(list(data.labels), add_special_tokens=False)
    return [np.array([*record.target_prefix, *entry.ids[:room], *record.stop_ids[:1]], np.int32) for entry in encoded]


def _random(model: TranslationModel) -> tuple[list[NDArray[Any]], list[Ids]]:
    generator = np.random.default_rng(_SEED)
    record, spec = model.record, model.spec
    sources: list[NDArray[Any]] = []
    targets = []
    for source, target in _RANDOM:
        length = min(target, record.target_length - len(record.target_prefix))
        answer = generator.integers(min(1, spec.vocabulary_size - 1), spec.vocabulary_size, length)
        targets.append(np.array([*record.target_prefix, *answer], np.int32))
        if record.audio is not None:
            sources.append(generator.standard_normal((record.source_length, record.audio.bands)).astype(np.float32))
            continue
        embeddings = spec.embeddings if spec.source is None else spec.source.embeddings or spec.embeddings
        rows = len(embeddings.token)
        # Id 0 stays out: a Keras model with mask_zero takes it for padding, in the middle of a text too.
        sources.append(generator.integers(min(1, rows - 1), rows, min(source, record.source_length)).astype(np.int32))
    return (sources[:2], targets[:2]) if record.audio is not None else (sources, targets)


def pair_golden(pairs: Pairs, model: TranslationModel) -> list[GoldenCase]:
    """Choose a few pairs, short to long, with Keras's scores after their last token: a device checks itself with them."""
    order = sorted(range(len(pairs.sources)), key=lambda index: len(pairs.sources[index]))
    picked = sorted({order[int(place)] for place in np.linspace(0, len(order) - 1, 1 if model.record.audio else 4)})
    cases = []
    for index in picked:
        source, target, rows = pairs.sources[index], pairs.targets[index], pairs.scores[index]
        text, encoded = _text_of(source, model)
        inputs = {"source": source[None], "target": target[None]}
        cases.append(GoldenCase(text, encoded, inputs, {"logits": rows[None, -1:]}))
    return cases


def _text_of(source: NDArray[Any], model: TranslationModel) -> tuple[str | None, list[int] | None]:
    """Return a text, and the ids that the tokenizer gives for it here: those that it has to give on the device."""
    record = model.record
    if model.tokenizer is None or source.ndim > 1:
        return None, None
    inner = source[len(record.source_prefix) : len(source) - len(record.source_suffix)]
    text = model.tokenizer.decode(inner.tolist())
    if not text.strip():
        return None, None
    encoded = model.tokenizer.encode(text, add_special_tokens=False).ids
    room = record.source_length - len(record.source_prefix) - len(record.source_suffix)
    return (text, encoded) if 0 < len(encoded) <= room else (None, None)
