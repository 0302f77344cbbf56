"""Tokenizers: read one from a file or a model, check it against where it came from, describe it for the bundle.

A bundle's tokenizer is always a Hugging Face ``tokenizer.json``, whatever it was before: a device then needs one small
package, ``tokenizers``, and no framework.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgelm.bundle.manifest import TokenizerRecord
from edgelm.errors import TokenizerError
from edgelm_converters.frameworks import import_tensorflow
from edgelm_converters.tokenizer_files import read_folder, read_tokenizer_json, read_vocabulary
from edgelm_converters.tokenizer_keras_hub import is_causal, to_hugging_face, uses_tensorflow
from edgelm_converters.tokenizer_probes import PROBE_TEXTS
from edgelm_converters.tokenizer_sentencepiece import (
    control_name,
    from_sentencepiece,
    sentencepiece_processor,
    special_name,
)
from edgelm_converters.tokenizer_vectorization import from_text_vectorization

__all__ = [
    "PROBE_TEXTS",
    "TokenMismatch",
    "check_fits",
    "check_tokenizer",
    "describe",
    "from_text_vectorization",
    "read_tokenizer",
    "to_hugging_face",
]

_PADDING_NAMES = ("[PAD]", "<pad>", control_name("[PAD]"), control_name("<pad>"), special_name("<pad>"))


@dataclass(frozen=True)
class TokenMismatch:
    """A text that two tokenizers read differently.

    Attributes:
        text: The text.
        expected: Ids of the tokenizer that the model came with.
        found: Ids of the converted one.
    """

    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a user's tokenizer.

    Args:
        path: A Hugging Face ``tokenizer.json``; a WordPiece vocabulary ``.txt``; a SentencePiece ``.model`` or
            ``.spm``; or a folder with one of them, such as a KerasHub preset.

    Returns:
        The tokenizer. One from a SentencePiece model adds no start and end tokens, as the model says nothing of them.
        Where it reads some of :data:`PROBE_TEXTS` otherwise than SentencePiece itself, a warning says so.

    Raises:
        TokenizerError: It is missing, of an unknown kind, or damaged.
        MissingPackageError: ``sentencepiece`` or ``keras_hub`` is needed to read it.
    """
    if path.is_dir():
        return read_folder(path, read_tokenizer)
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return read_tokenizer_json(path)
        if suffix == ".txt":
            return read_vocabulary(path)
        if suffix in (".model", ".spm"):
            return _read_sentencepiece(path)
    except OSError as error:
        raise TokenizerError(f"The tokenizer {path} cannot be read: {error.strerror}.") from error
    raise TokenizerError(
        f"{path} is not a tokenizer that edgelm reads: use a tokenizer.json (Hugging Face), a vocab.txt (WordPiece), a "
        "SentencePiece .model, or a KerasHub preset folder."
    )


def check_tokenizer(source: Any, tokenizer: Tokenizer, texts: Iterable[str]) -> list[TokenMismatch]:
    """Return the texts whose ids differ from those of the tokenizer that was converted.

    Padding is left out, and both are cut at the source's length where it has one. A language model's prompts are not cut.

    Args:
        source: A KerasHub preprocessor or tokenizer, run as ``predict`` runs it (a language model's as ``generate`` does);
            a ``TextVectorization`` layer; or a ``sentencepiece.SentencePieceProcessor``.
        tokenizer: The converted one.
        texts: What to compare on, such as :data:`PROBE_TEXTS` and the user's own.
    """
    texts = list(texts)
    if not texts:
        return []
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    if is_causal(source):
        return _mismatches(texts, _prompt_ids(source, texts), [tuple(copy.encode(text).ids) for text in texts])
    has_special_tokens = hasattr(source, "tokenizer")
    length = _length(source)
    if length is not None:
        copy.enable_truncation(length)
    pad_id = _source_pad_id(source)
    expected = [_without_padding(ids, pad_id) for ids in _source_ids(source, texts)]
    encoded = (copy.encode(text, add_special_tokens=has_special_tokens).ids for text in texts)
    return _mismatches(texts, expected, [_without_padding(ids, pad_id) for ids in encoded])


def describe(tokenizer: Tokenizer, *, max_length: int | None = None, file: str = "tokenizer.json") -> TokenizerRecord:
    """Return what a bundle's manifest says of a tokenizer.

    The padding id is the one that the tokenizer pads with; else that of its token ``[PAD]`` or ``<pad>``; else 0.

    Args:
        tokenizer: The tokenizer.
        max_length: The most tokens that the model takes; None where nothing bounds it. The shorter of this and the
            length at which the tokenizer cuts goes into the record.
        file: Its name in the bundle.

    Raises:
        TokenizerError: Neither the model nor the tokenizer has a length.
    """
    truncation = tokenizer.truncation
    lengths = [
        length for length in (max_length, truncation["max_length"] if truncation else None) if length is not None
    ]
    if not lengths:
        raise TokenizerError("Neither the tokenizer nor the model says where a text is cut: give a sequence length.")
    return TokenizerRecord(
        file=file,
        pad_id=_pad_id(tokenizer),
        max_length=min(lengths),
        vocabulary_size=_vocabulary_size(tokenizer),
    )


def check_fits(tokenizer: Tokenizer, vocabulary_size: int) -> None:
    """Raise where a tokenizer's ids go beyond the rows of the model's embedding.

    Args:
        tokenizer: The tokenizer.
        vocabulary_size: Rows of the model's embedding.

    Raises:
        TokenizerError: They do.
    """
    ids = _vocabulary_size(tokenizer)
    if ids > vocabulary_size:
        raise TokenizerError(
            f"The tokenizer has {ids:,} ids and the model's embedding {vocabulary_size:,} rows: it belongs to another "
            "model. Give the tokenizer that the model was trained with."
        )


def _read_sentencepiece(path: Path) -> Tokenizer:
    proto = path.read_bytes()
    try:
        result = from_sentencepiece(proto)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    mismatches = check_tokenizer(sentencepiece_processor(proto), result, PROBE_TEXTS)
    if mismatches:
        warnings.warn(
            f"The tokenizer made from {path} reads {len(mismatches)} of {len(PROBE_TEXTS)} difficult texts otherwise "
            f"than SentencePiece does, such as {mismatches[0].text!r}: {list(mismatches[0].found)} for "
            f"{list(mismatches[0].expected)}.",
            stacklevel=3,
        )
    return result


def _pad_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    found = (tokenizer.token_to_id(name) for name in _PADDING_NAMES)
    return next((index for index in found if index is not None), 0)


def _vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return one more than the largest id: a vocabulary may have holes."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _length(source: Any) -> int | None:
    """Return where the source cuts a text."""
    if hasattr(source, "sequence_length"):
        return None if source.sequence_length is None else int(source.sequence_length)
    if hasattr(source, "get_vocabulary"):
        length = source.get_config()["output_sequence_length"]
        return None if length is None else int(length)
    return None


def _source_pad_id(source: Any) -> int:
    return int(getattr(getattr(source, "tokenizer", source), "pad_token_id", 0) or 0)


def _source_ids(source: Any, texts: list[str]) -> list[Sequence[int]]:
    """Return the source's ids of each text, perhaps padded."""
    if hasattr(source, "encode_as_ids"):
        return [source.encode_as_ids(text) for text in texts]
    if not hasattr(source, "sequence_length"):  # TextVectorization
        return [np.atleast_1d(np.asarray(source(np.array([text], dtype=object)))[0]).tolist() for text in texts]
    if uses_tensorflow(getattr(source, "tokenizer", source)):
        tensorflow = import_tensorflow()
        batches = tensorflow.data.Dataset.from_tensor_slices(texts).batch(len(texts)).map(source)
        outputs = next(iter(batches))
    else:
        outputs = source(texts)
    rows = outputs["token_ids"] if isinstance(outputs, dict) else outputs
    if hasattr(rows, "to_list"):  # a ragged tensor
        rows = rows.to_list()
    return [np.asarray(row).tolist() for row in rows]


def _prompt_ids(preprocessor: Any, texts: list[str]) -> list[tuple[int, ...]]:
    """Return the ids that a language model's ``generate`` makes of each text."""
    # A byte may become that many tokens: one letter of three bytes (ﷺ) is eighteen letters of two when normalised.
    room = 2 + 12 * max(len(text.encode()) for text in texts)
    outputs = preprocessor.generate_preprocess(texts, sequence_length=room)
    rows, masks = np.asarray(outputs["token_ids"]), np.asarray(outputs["padding_mask"], bool)
    return [tuple(int(index) for index in row[mask]) for row, mask in zip(rows, masks, strict=True)]


def _mismatches(texts: list[str], expected: list[tuple[int, ...]], found: list[tuple[int, ...]]) -> list[TokenMismatch]:
    pairs = zip(texts, expected, found, strict=True)
    return [TokenMismatch(text, one, other) for text, one, other in pairs if one != other]


def _without_padding(ids: Sequence[int], pad_id: int) -> tuple[int, ...]:
    end = len(ids)
    while end and ids[end - 1] == pad_id:
        end -= 1
    return tuple(int(index) for index in ids[:end])
