"""Token ids into text while they come, in whole characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Detokenizer"]

# What a decoder gives for bytes that are no whole UTF-8 character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has up to four bytes and a token at least one: what is unfinished after so many tokens never will be finished.
_LONGEST_CHARACTER = 4
# Tokens of the prompt that are looked back at: a whole character, and a token before it.
_CONTEXT_TOKENS = 8


class Detokenizer:
    """Turns ids into pieces of text, one id at a time, at a cost that does not grow with the text.

    A token alone does not say what it adds: decoders cut the space of a first word, join word parts, and make characters of
    several byte tokens. So each id is decoded behind those of the piece before it, and the difference counts.
    ``tokenizers.decoders.DecodeStream`` does likewise, but raises an error for good once a byte token follows that does not
    go on from a finished character (tokenizers 0.23), which is what a model may answer.

    Special tokens are left out. Ids that make no valid UTF-8 give U+FFFD.

    Args:
        tokenizer: With the decoder of the model.
        context: The ids that the text goes on from. Without any, it begins as a text of its own does, without the space
            before its first word.
    """

    def __init__(self, tokenizer: Tokenizer, context: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}
        self._context = [index for index in context if index not in self._special][-_CONTEXT_TOKENS:]
        self._shown = self._decode(self._context)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Take the next id and return the text that is finished with it, which may be empty."""
        if token in self._special:
            return ""
        self._pending.append(token)
        text = self._pending_text(self._pending)
        if not text.endswith(_REPLACEMENT):
            return self._commit(text, len(self._pending))
        if len(self._pending) <= _LONGEST_CHARACTER:
            return ""
        return self._commit(self._pending_text(self._pending[:1]), 1)

    def rest(self) -> str:
        """Return what is finished of the text that was held back; an unfinished character at its end is left out."""
        text = self._pending_text(self._pending).rstrip(_REPLACEMENT) if self._pending else ""
        self._pending = []
        return text

    def _commit(self, text: str, count: int) -> str:
        done, self._pending = self._pending[:count], self._pending[count:]
        # Without text yet, what came still decides how a first word begins.
        self._context = done if self._shown or text else self._context + done
        self._shown = self._decode(self._context)
        return text

    def _pending_text(self, ids: list[int]) -> str:
        whole = self._decode(self._context + ids)
        if whole.startswith(self._shown):
            return whole[len(self._shown) :]
        # Bytes that do not go on from those before make U+FFFD of all of them: of what was shown, too.
        return self._decode(ids)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
