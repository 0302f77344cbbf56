"""What a tokenizer's model needs beside the tokens that texts take: to read them as before, and to write any other.

**A text whose tokens all stay has the same tokens afterwards**, where none is unknown. Each kind of model chooses among what
its vocabulary offers, and fewer offers change no choice that is still there:

- BPE takes the first merge in its list that applies, again and again. The merges inside a token are those that this token
  alone would take, for none crosses its ends; so the pieces on that way stay with it (`Pieces.needs`), and merges that were
  not taken do not matter.
- WordPiece takes the longest piece, and Unigram the path of the best score: a subset that holds the winner has the same one.
  But Unigram scores an unknown character by the lowest score of all pieces, so a piece that has it stays.

**Any other text is written with smaller pieces.** Those of one character stay, and any piece that these cannot spell; where
a vocabulary has all 256 bytes to fall back to, they stay instead. A WordLevel vocabulary has no smaller pieces: there, and
where WordPiece lacks a character, a word becomes the unknown token. (WordPiece may also find a way where it had none: it never
goes back from a longest piece, and such a piece may be gone.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgelm_converters.tokenizer_sentencepiece import control_name, special_name

__all__ = ["Pieces", "pieces_of"]

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SPACE = "▁"  # what SentencePiece writes for a space: its bytes would be decoded as the sign itself
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "")  # "" is TextVectorization's padding


@dataclass(frozen=True)
class Pieces:
    """A model's vocabulary, and what has to stay of it.

    Attributes:
        names: Pieces by id, without the added tokens that are no part of the model.
        floor: Ids that stay whatever the texts are.
        needs: Returns the ids of the pieces that a piece is built from.
    """

    names: Mapping[int, str]
    floor: frozenset[int]
    needs: Callable[[int], frozenset[int]]


def pieces_of(model: Mapping[str, Any]) -> Pieces:
    """Return what has to stay of the model in a ``tokenizer.json``, as `tokenizer_trim.read_json` checked it."""
    kind = model["type"]
    if kind == "Unigram":
        ids = {name: index for index, (name, _) in enumerate(model["vocab"])}
    else:
        ids = {str(name): int(index) for name, index in model["vocab"].items()}
    names = {index: name for name, index in ids.items()}
    if kind == "WordLevel":
        return Pieces(names, _ids(ids, _SPECIAL), _nothing)
    if kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return Pieces(names, _ids(ids, _SPECIAL) | _unspelled(ids, lambda piece: _letters(piece, prefix)), _nothing)
    control = frozenset(index for name, index in ids.items() if name.startswith((control_name(""), special_name(""))))
    falls_back = bool(model["byte_fallback"]) and all(byte in ids for byte in _BYTES)
    if kind == "Unigram":
        # A character that the path knows by itself is never unknown: those that it knows stay known.
        floor = control | _unspelled(ids, list) | _lowest(model["vocab"])
        return Pieces(names, floor | _ids(ids, _BYTES) if falls_back else floor, _nothing)
    floor = control | (_ids(ids, (*_BYTES, _SPACE)) if falls_back else _unspelled(ids, list))
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    return Pieces(names, floor, lambda index: _ids(ids, _way_to(names[index], ranks) if index in names else ()))


def _nothing(index: int) -> frozenset[int]:
    return frozenset()


def _ids(ids: Mapping[str, int], names: Iterable[str]) -> frozenset[int]:
    return frozenset(ids[name] for name in names if name in ids)


def _lowest(scored: list[tuple[str, float]]) -> frozenset[int]:
    return frozenset((min(range(len(scored)), key=lambda index: scored[index][1]),)) if scored else frozenset()


def _unspelled(ids: Mapping[str, int], letters: Callable[[str], list[str]]) -> frozenset[int]:
    """Return the pieces that smaller ones of the vocabulary cannot spell: single characters first of all."""
    found = set()
    for name, index in ids.items():
        spelled = letters(name)
        if len(spelled) < 2 or any(letter not in ids for letter in spelled):
            found.add(index)
    return frozenset(found)


def _letters(piece: str, prefix: str) -> list[str]:
    """Return the pieces of one character that a WordPiece piece is spelled with."""
    continues = bool(prefix) and piece.startswith(prefix) and piece != prefix
    characters = piece.removeprefix(prefix) if continues else piece
    return [letter if place == 0 and not continues else f"{prefix}{letter}" for place, letter in enumerate(characters)]


def _way_to(piece: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Return every piece that merging goes through on its way to `piece`, the last included.

    Nothing where it does not arrive there: such a piece is found whole alone (``ignore_merges``), or never in any text.
    """
    parts, passed = list(piece), list(piece)
    while len(parts) > 1:
        pairs = itertools.pairwise(parts)
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairs))
        if rank == len(ranks):
            return []
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        passed.append(parts[place])
    return passed
