"""Texts into token ids, with the tokenizer of the bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.bundle import TokenizerRecord
from edgelm.errors import InputError, MissingPackageError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["Encoded", "Encoder", "call_tokenizer", "open_encoder", "read_tokenizer"]

# Pre-tokenizers that never let a token reach over white space between two words.
_SPLITTING = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))
# A token has four to five characters in most languages. Texts up to this many characters a token are read whole at once.
_CHARACTERS_PER_TOKEN = 16
# How far before the cut the last token that counts has to lie, so that the cut cannot have changed it: longer than any
# added token ("<|start_header_id|>"), which is found in the text before it is split into words.
_MARGIN_TOKENS = 64


@dataclass(frozen=True)
class Encoded:
    """A text as token ids.

    Attributes:
        ids: With the special tokens, without padding.
        segments: The segment of each token.
        truncated: Whether the end of the text was cut off.
    """

    ids: list[int]
    segments: list[int]
    truncated: bool


class Encoder:
    """Turns texts into ids. Safe to use from several threads.

    Args:
        tokenizer: Its truncation and padding are set here: no padding, and a cut after `TokenizerRecord.max_length` tokens.
        record: From the manifest.
    """

    def __init__(self, tokenizer: Tokenizer, record: TokenizerRecord) -> None:
        self._tokenizer = tokenizer
        self._record = record
        tokenizer.no_padding()
        settings = {**(tokenizer.truncation or {}), "max_length": record.max_length, "stride": 0}
        tokenizer.enable_truncation(**settings)
        self._splits = settings.get("direction", "right") == "right" and _splits_at_spaces(tokenizer)

    def encode(self, text: str) -> Encoded:
        """Return the ids of a text.

        Raises:
            InputError: It is not a text, is empty, or holds nothing that the tokenizer knows.
        """
        if not isinstance(text, str):
            raise InputError(f"A text was expected, and a value of the type {type(text).__name__} was given.")
        if not text or text.isspace():
            raise InputError("The text is empty: there is nothing to answer.")
        encoding = self._encode(text)
        ids = encoding.ids
        if not ids:
            raise InputError("The tokenizer finds no token in the text.")
        if max(ids) >= self._record.vocabulary_size:
            raise InputError(
                f"The tokenizer gave the id {max(ids):,}, and the model has {self._record.vocabulary_size:,}: "
                "the text holds a token that the model was not trained on."
            )
        return Encoded(ids, encoding.type_ids, bool(encoding.overflowing))

    def _encode(self, text: str) -> Encoding:
        """Tokenize no more of a huge text than can count, which does not change the result."""
        need = self._record.max_length + _MARGIN_TOKENS
        size = need * _CHARACTERS_PER_TOKEN
        while self._splits and size < len(text):
            end = _last_gap(text, size)
            if end:
                encoding = call_tokenizer(self._tokenizer, text[:end])
                if len(encoding.ids) + sum(len(rest.ids) for rest in encoding.overflowing) >= need:
                    return encoding
            size *= 4
        return call_tokenizer(self._tokenizer, text)


def call_tokenizer(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Encoding:
    """Tokenize a text, with the special tokens that the tokenizer adds, or without.

    Raises:
        InputError: The text is no valid Unicode.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=special)
    except (TypeError, UnicodeEncodeError) as error:
        raise InputError(
            "The text holds half a surrogate pair, which is no character: it was decoded wrongly. "
            "Decode it as UTF-8 with errors='replace'."
        ) from error


def _last_gap(text: str, end: int) -> int:
    """Return the last place up to `end` where a word is followed by white space; 0 where there is none nearby."""
    for place in range(end, max(end - 1000, 0), -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return 0


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Say whether tokens never reach over white space, so that words before a gap do not depend on what comes after."""
    settings = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    return any(_splits(part) for part in settings.get("pretokenizers", [settings]))


def _splits(settings: dict[str, Any]) -> bool:
    kind = settings.get("type")
    if kind == "ByteLevel":
        return bool(settings.get("use_regex", True))
    if kind == "Metaspace":
        return bool(settings.get("split", True))
    return kind in _SPLITTING


def open_encoder(file: Path, record: TokenizerRecord) -> Encoder:
    """Read the tokenizer of a bundle, for texts that are cut to the length that the model takes.

    Args:
        file: A Hugging Face ``tokenizer.json``.
        record: From the manifest.

    Raises:
        TokenizerError: The file cannot be read.
        MissingPackageError: The package `tokenizers` is not installed.
    """
    return Encoder(read_tokenizer(file), record)


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        TokenizerError: The file cannot be read.
        MissingPackageError: The package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise MissingPackageError("tokenizers", extra="litert", what="The bundle's tokenizer") from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    # The Rust library raises plain `Exception` for a file that it cannot parse, and nothing narrower.
    except Exception as error:
        raise TokenizerError(
            f"{file.name} is not a tokenizer that this version of `tokenizers` reads: {error}"
        ) from error
    return tokenizer
