"""Which tokens texts take, those of a chat template among them; and how two tokenizers read the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from edgelm_runtimes.chat_template import ChatTemplate, Message
from jinja2 import Environment, TemplateSyntaxError
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgelm.errors import InputError

__all__ = [
    "Comparison",
    "compare_readings",
    "compare_tokenizers",
    "conversations",
    "count_tokens",
    "encode_texts",
    "template_texts",
]

Ids = NDArray[np.int32]

_BATCH = 4096  # texts that are encoded at once: a token takes 100 bytes until its id alone is left


@dataclass(frozen=True)
class Comparison:
    """How a trimmed tokenizer reads texts, beside the one that it came from. Special tokens that it adds are counted too.

    Attributes:
        texts: Their number.
        same: Of them, how many have the same tokens.
        tokens_before: Of all texts, in the whole vocabulary.
        tokens_after: Likewise in the trimmed one.
        unknown_before: Of `tokens_before`, how many are the unknown token.
        unknown_after: Likewise of `tokens_after`.
        broken: A text that has other tokens although all that it had were known and kept: always None, unless the tokenizer
            chooses its tokens in a way that is not known here.
    """

    texts: int
    same: int
    tokens_before: int
    tokens_after: int
    unknown_before: int
    unknown_after: int
    broken: str | None


def encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Ids]:
    """Yield the ids of texts, int32 ``(n,)`` each, special tokens that are added among them; nothing is cut or padded."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    for batch in _batches(texts):
        for encoding in copy.encode_batch_fast(batch):
            yield np.asarray(encoding.ids, np.int32)


def count_tokens(encoded: Iterable[Ids], size: int) -> NDArray[np.int64]:
    """Return how often each id comes, int64 ``(size,)``; all of them are below `size`."""
    counts = np.zeros(size, np.int64)
    for ids in encoded:
        np.add.at(counts, ids, 1)
    return counts


def compare_tokenizers(
    before: Tokenizer, after: Tokenizer, ids: Mapping[int, int], texts: Sequence[str], *, unknown: int | None = None
) -> Comparison:
    """Read texts with two tokenizers.

    Args:
        before: With the whole vocabulary.
        after: The trimmed one.
        ids: New ids by old ones.
        texts: Of any kind: such that the vocabulary was not trimmed to show what it costs.
        unknown: The old id of the unknown token; None where there is none.
    """
    return compare_readings(texts, encode_texts(before, texts), encode_texts(after, texts), ids, unknown=unknown)


def compare_readings(
    texts: Iterable[str], before: Iterable[Ids], after: Iterable[Ids], ids: Mapping[int, int], *, unknown: int | None
) -> Comparison:
    """Compare the old ids of texts with the new ones; arguments as of `compare_tokenizers`."""
    renumber = np.full(_end(ids), -1, np.int32)
    renumber[list(ids)] = list(ids.values())
    number = same = tokens_before = tokens_after = unknown_before = unknown_after = 0
    broken = None
    for text, old, new in zip(texts, before, after, strict=True):
        wanted = renumber[np.minimum(old, len(renumber) - 1)]
        equal = np.array_equal(wanted, new)
        number += 1
        same += equal
        tokens_before += len(old)
        tokens_after += len(new)
        if unknown is not None:
            unknown_before += int(np.count_nonzero(old == unknown))
            unknown_after += int(np.count_nonzero(new == ids[unknown]))
        if broken is None and not equal and (wanted >= 0).all() and (unknown is None or unknown not in old):
            broken = text
    return Comparison(number, same, tokens_before, tokens_after, unknown_before, unknown_after, broken)


def _end(ids: Mapping[int, int]) -> int:
    """Return one more than the highest old id, and a place behind it for all that are higher."""
    return max(ids) + 2


def template_texts(template: str) -> list[str]:
    """Return what a chat template can write by itself: its plain text, and every string in its expressions.

    Raises:
        InputError: It is not valid Jinja.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701 - prompts are no web pages
    try:
        tokens = list(environment.lexer.tokenize(template))
    except TemplateSyntaxError as error:
        raise InputError(f"The chat template is not valid Jinja ({error}): give another one.") from error
    return [str(token.value) for token in tokens if token.type in ("data", "string") and token.value]


def conversations(template: str, texts: Sequence[str]) -> Iterator[str]:
    """Yield prompts in which each text is said once, by the user or by the assistant: tokens may cross its two ends.

    Raises:
        InputError: The template does not take a conversation of plain messages.
        BundleError: It is not valid Jinja.
    """
    rendered = ChatTemplate(template, start="", stop="")
    for place in range(0, len(texts), 3):
        said = texts[place : place + 3]
        messages: list[Message] = [
            {"role": "assistant" if turn % 2 else "user", "content": text} for turn, text in enumerate(said)
        ]
        yield rendered.render(messages)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
