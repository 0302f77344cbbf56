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

__all__ = ["Comparison", "compare_tokenizers", "conversations", "count_tokens", "template_texts", "unbounded"]

_BATCH = 4096  # texts that are encoded at once: their tokens take 100 bytes each until they are counted


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
        broken: A text that has other tokens although all that it had were kept: always None, unless the tokenizer chooses its
            tokens in a way that is not known here.
    """

    texts: int
    same: int
    tokens_before: int
    tokens_after: int
    unknown_before: int
    unknown_after: int
    broken: str | None


def unbounded(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that neither cuts nor fills up."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str], size: int) -> NDArray[np.int64]:
    """Return how often each id comes in texts, int64 ``(size,)``; none of `texts` is cut.

    Args:
        tokenizer: Its special tokens count as often as it adds them.
        texts: Read once.
        size: More than the highest id.
    """
    copy, counts = unbounded(tokenizer), np.zeros(size, np.int64)
    for batch in _batches(texts):
        ids = [np.asarray(encoding.ids, np.int64) for encoding in copy.encode_batch_fast(batch)]
        counts += np.bincount(np.concatenate(ids), minlength=size)
    return counts


def compare_tokenizers(
    before: Tokenizer, after: Tokenizer, ids: Mapping[int, int], texts: Iterable[str], *, unknown: int | None = None
) -> Comparison:
    """Read texts with two tokenizers.

    Args:
        before: With the whole vocabulary.
        after: The trimmed one.
        ids: New ids by old ones.
        texts: Read once.
        unknown: The old id of the unknown token; None where there is none.
    """
    before, after = unbounded(before), unbounded(after)
    number = same = tokens_before = tokens_after = unknown_before = unknown_after = 0
    broken = None
    for batch in _batches(texts):
        for text, old, new in zip(batch, before.encode_batch_fast(batch), after.encode_batch_fast(batch), strict=True):
            wanted = [ids.get(index) for index in old.ids]
            number += 1
            same += wanted == new.ids
            tokens_before += len(wanted)
            tokens_after += len(new.ids)
            if unknown is not None:
                unknown_before += old.ids.count(unknown)
                unknown_after += new.ids.count(ids[unknown])
            if broken is None and wanted != new.ids and None not in wanted:
                broken = text
    return Comparison(number, same, tokens_before, tokens_after, unknown_before, unknown_after, broken)


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
