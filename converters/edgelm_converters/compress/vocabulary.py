"""Trims a vocabulary to what a domain or a language needs: fewer rows of the embedding and of a language model's head.

What stays, stays exactly: a kept token has the row that it had, so its vector and its score are those of the whole model, and a
text whose tokens were all kept is read as before (`edgelm_converters.compress.tokenizer_pieces` says why). Any other text is
still read and written, in smaller pieces; only where a vocabulary has none does a word become the unknown token. A language
model can no longer write a token that went: so its corpus holds answers of the kind that it should give, not questions alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import CompressionStep
from edgelm.errors import InputError, RecipeError, TokenizerError
from edgelm_converters.compress.tokenizer_pieces import Pieces, pieces_of
from edgelm_converters.compress.tokenizer_trim import fixed_ids, read_json, trim_tokenizer, unknown_id
from edgelm_converters.compress.vocabulary_texts import (
    Comparison,
    compare_readings,
    conversations,
    count_tokens,
    encode_texts,
    template_texts,
)
from edgelm_converters.spec import Float32, TransformerSpec, parameters
from edgelm_converters.tokenizer import check_fits, describe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Trimmed", "trim_vocabulary"]

_PADDING = 0  # a mask of kind "nonzero" takes it for padding, and so does a tokenizer that names no other


@dataclass(frozen=True)
class Trimmed:
    """A model with a smaller vocabulary.

    Attributes:
        spec: The model; every array but those with a row a token is the given model's own.
        tokenizer: Its tokenizer.
        step: What was done, for the manifest.
        ids: New ids by old ones, both ascending.
        comparison: How the corpus is read now.
    """

    spec: TransformerSpec
    tokenizer: Tokenizer
    step: CompressionStep
    ids: Mapping[int, int]
    comparison: Comparison


def trim_vocabulary(
    spec: TransformerSpec,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    keep: Collection[int] = (),
    chat_template: str | None = None,
    limit: int | None = None,
) -> Trimmed:
    """Return a model and its tokenizer with the tokens that a corpus takes, renumbered without gaps in the old order.

    These stay besides: id 0, in its place; special and added tokens, padding, and the unknown token; what the chat template
    writes; and the smallest pieces, with which any other text is written.

    Args:
        spec: An encoder or a language model.
        tokenizer: The model's: BPE (byte-level, or with bytes to fall back to), WordPiece, Unigram or WordLevel.
        texts: Of the kind that the model is for: what it reads and, of a language model, what it writes.
        keep: Further ids that stay, such as those that end an answer.
        chat_template: Jinja; the texts are read as messages within it too.
        limit: The most tokens in the end: those that come most often in the corpus stay, each with what it is built from.
            None keeps all that come.

    Raises:
        InputError: There are no texts.
        RecipeError: `limit` is less than what has to stay, an id in `keep` is not the model's, or the model is an
            encoder-decoder.
        TokenizerError: The tokenizer has ids that the model lacks, or something whose ids are not known here.
    """
    if not texts:
        raise InputError("The corpus has no texts: a vocabulary is trimmed to what texts need.")
    if spec.translates:
        raise RecipeError(
            f"'{spec.name}' has a vocabulary for its source and one for its answers: neither is trimmed yet."
        )
    size = spec.vocabulary_size
    strange = [index for index in keep if not 0 <= index < size]
    if strange:
        raise RecipeError(f"The id {strange[0]} cannot be kept: the model's ids are below {size:,}.")
    check_fits(tokenizer, size)
    data = read_json(tokenizer)
    pieces = pieces_of(data["model"])
    floor = {_PADDING, describe(tokenizer, max_length=1).pad_id, *keep, *fixed_ids(data), *pieces.floor}
    if max(floor) >= size:
        raise TokenizerError(
            f"The tokenizer names the id {max(floor)}, and the model's ids are below {size:,}: it belongs to another model."
        )
    read = list(encode_texts(tokenizer, texts))
    counts = count_tokens(read, size)
    notes = []
    if chat_template is not None:
        for written in encode_texts(tokenizer, template_texts(chat_template)):
            floor.update(written.tolist())
        try:
            counts += count_tokens(encode_texts(tokenizer, conversations(chat_template, texts)), size)
        except InputError as error:
            notes.append(
                f"Of the chat template only its own texts were kept, not those across the ends of a message: {error}"
            )
    kept = _chosen(floor, counts, pieces, limit)
    ids = {old: new for new, old in enumerate(sorted(kept))}
    smaller = trim_tokenizer(data, ids)
    comparison = compare_readings(texts, read, encode_texts(smaller, texts), ids, unknown=unknown_id(data))
    if comparison.broken is not None:
        raise TokenizerError(
            f"The trimmed tokenizer reads {comparison.broken!r:.100} otherwise, although each of its tokens was kept: how it "
            "chooses them is not known; keep the whole vocabulary."
        )
    trimmed = _with_rows(spec, np.asarray(sorted(kept)))
    step = CompressionStep(
        step="trim-vocabulary",
        settings={"texts": len(texts), **({} if limit is None else {"limit": limit})},
        parameters_before=_size(spec),
        parameters_after=_size(trimmed),
        notes=(_what_stays(size, counts, kept), _how_read(comparison), *notes),
    )
    return Trimmed(trimmed, smaller, step, ids, comparison)


def _chosen(floor: set[int], counts: NDArray[np.int64], pieces: Pieces, limit: int | None) -> set[int]:
    """Return the ids that stay.

    Raises:
        RecipeError: More than `limit` have to.
    """
    kept = set(floor)
    for index in floor:
        kept |= pieces.needs(index)
    if limit is not None and len(kept) > limit:
        raise RecipeError(
            f"A vocabulary of {limit:,} tokens is too small: {len(kept):,} stay whatever the corpus is (special tokens, the "
            "smallest pieces, what the chat template writes); set a higher limit."
        )
    for index in np.argsort(-counts, kind="stable").tolist():
        if not counts[index]:
            break
        more = {index} | pieces.needs(index)
        if limit is not None and len(kept | more) > limit:
            break
        kept |= more
    return kept


def _with_rows(spec: TransformerSpec, rows: NDArray[np.int64]) -> TransformerSpec:
    """Return a model with those rows of its tables; a table that was tied is one table again."""
    table = spec.embeddings.token
    small: Float32 = table[rows]
    head = spec.head
    if head.tokens is not None:
        own = head.tokens.table
        bias = head.tokens.bias
        tokens = replace(
            head.tokens, table=small if own is table else own[rows], bias=None if bias is None else bias[rows]
        )
        head = replace(head, tokens=tokens)
    return replace(spec, embeddings=replace(spec.embeddings, token=small), head=head)


def _size(spec: TransformerSpec) -> int:
    return sum(array.size for _, array in parameters(spec))


def _what_stays(size: int, counts: NDArray[np.int64], kept: set[int]) -> str:
    used = int(np.count_nonzero(counts[sorted(kept)]))
    return (
        f"Of {size:,} tokens {len(kept):,} stayed: {used:,} that the corpus takes, {len(kept) - used:,} that these are built "
        "from, that write any other text, or that are special."
    )


def _how_read(comparison: Comparison) -> str:
    longer = comparison.tokens_after / max(1, comparison.tokens_before) - 1
    text = f"{comparison.same:,} of {comparison.texts:,} texts of the corpus have the same tokens"
    if comparison.same < comparison.texts:
        text += f"; all together have {longer:+.2%} tokens"
    if comparison.unknown_after > comparison.unknown_before:
        unknown = comparison.unknown_after - comparison.unknown_before
        text += f", and {unknown:,} words became the unknown token"
    return f"{text}."
