"""Prompts into token ids that are never cut in silence, and the cut that a user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgelm.bundle import GenerationRecord, TokenizerRecord
from edgelm.errors import InputError
from edgelm_runtimes.detokenize import Detokenizer
from edgelm_runtimes.text import call_tokenizer, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Prompter", "Window", "check_ids", "fit", "kept_from_start", "open_prompter"]

# How a sequence that is longer than the context is cut: see `fit`.
Window = Literal["keep_start", "keep_end"] | int


class Prompter:
    """The tokenizer of a language model. Safe to use from several threads.

    Args:
        tokenizer: Its truncation and padding are switched off here. None where the bundle has none: then prompts are ids,
            and answers have no text.
        vocabulary_size: Scores of a step: ids are below this.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._size = vocabulary_size
        if tokenizer is not None:
            tokenizer.no_padding()
            tokenizer.no_truncation()

    @property
    def size(self) -> int:
        """Ids are below this."""
        return self._size

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text, all of them.

        Args:
            text: May be empty, where the tokenizer begins a text with a token of its own.
            special: Whether the tokenizer adds that token. A chat template has it in its text.

        Raises:
            InputError: It is no text, or gives no token, or one that the model does not have; or there is no tokenizer.
        """
        if self._tokenizer is None:
            raise InputError("The bundle has no tokenizer: give token ids to generate() instead of a text.")
        if not isinstance(text, str):
            raise InputError(f"A text was expected, and a value of the type {type(text).__name__} was given.")
        ids = list(call_tokenizer(self._tokenizer, text, special=special).ids)
        check_ids(ids, self._size)
        return ids

    def token(self, index: int | None) -> str:
        """Return a token as it stands in a text; an empty one for None, or where no token has the id."""
        return "" if index is None or self._tokenizer is None else self._tokenizer.id_to_token(index) or ""

    def stream(self, context: Sequence[int] = ()) -> Detokenizer | None:
        """Return what turns the ids of an answer into text; `context` is what the text goes on from."""
        return None if self._tokenizer is None else Detokenizer(self._tokenizer, context)

    def same_tokens(self, other: Prompter) -> bool:
        """Say whether two models have the same tokens under the same ids."""
        if self._tokenizer is None or other._tokenizer is None:
            return self._tokenizer is other._tokenizer and self._size == other._size
        return bool(self._tokenizer.get_vocab() == other._tokenizer.get_vocab())


def open_prompter(file: Path | None, record: TokenizerRecord | None, generation: GenerationRecord) -> Prompter:
    """Read the tokenizer of a bundle, where it has one.

    Raises:
        TokenizerError: The file cannot be read.
        MissingPackageError: The package `tokenizers` is not installed.
    """
    if file is None or record is None:
        return Prompter(None, generation.vocabulary_size)
    return Prompter(read_tokenizer(file), min(record.vocabulary_size, generation.vocabulary_size))


def check_ids(ids: Sequence[int], vocabulary_size: int) -> None:
    """Check the ids of a prompt.

    Raises:
        InputError: There is none, or one is no whole number from 0 to below `vocabulary_size`.
    """
    if not ids:
        raise InputError("The prompt has no token: give a text that is not empty.")
    for place, token in enumerate(ids):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocabulary_size:
            raise InputError(
                f"Token {place} of the prompt is {token!r}, and the model knows the ids 0 to {vocabulary_size - 1:,}."
            )


def kept_from_start(window: Window, context_length: int, *, has_start: bool) -> int:
    """Return how many tokens a window keeps from the beginning of a sequence.

    ``keep_start`` keeps a quarter of the context, where instructions stand; ``keep_end`` only the token that begins a text,
    without which many models answer nonsense (Xiao et al. 2023, https://arxiv.org/abs/2309.17453); a number keeps so many.

    Raises:
        InputError: It is no window, or a number that leaves less than half of the context.
    """
    if window == "keep_start":
        return context_length // 4
    if window == "keep_end":
        return int(has_start)
    if isinstance(window, bool) or not isinstance(window, int) or not 0 <= window <= context_length // 2:
        raise InputError(
            f"window is {window!r}, and has to be 'keep_start', 'keep_end', or how many tokens to keep from the start: at "
            f"most half of the context, {context_length // 2:,}."
        )
    return window


def fit(ids: Sequence[int], size: int, first: int) -> list[int]:
    """Return a sequence of at most `size` ids: the first ones, and the last ones; what was between is left out.

    Args:
        ids: Any number of them.
        size: More than `first`.
        first: Ids to keep from the start.
    """
    if len(ids) <= size:
        return list(ids)
    return [*ids[:first], *ids[len(ids) - (size - first) :]]
