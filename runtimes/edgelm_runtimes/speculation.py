"""Guessing tokens ahead and checking them together: several tokens a step, from the same distribution.

A step of decoding reads all weights for one token; checking a few more costs little. Who guesses is either a look into the
text so far (what was said is often said again: names, code, quotations), or a smaller model.

The check is speculative sampling (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, section 2.3). A guess ``x`` that
was drawn from ``q`` is taken with the probability ``min(1, p(x) / q(x))``, where ``p`` is the model's own distribution; at
the first refusal the token is drawn from what ``p`` has more than ``q``. What comes out is distributed as ``p``. A look into
the text has ``q(x) = 1``. Being greedy is a ``p`` with one token: then the answer is the same, token by token, as far as
`edgelm_runtimes.near_ties` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm_runtimes.sampling import Candidates, Sampling, candidates, draw, probability
from edgelm_runtimes.sequence import CachedSequence

__all__ = ["DRAFT_TOKENS", "NO_DRAFT", "Draft", "DraftModel", "Drafter", "PromptLookup", "verify"]

# Guesses a step. One counts only if all before it were right, and each that is refused was computed for nothing.
DRAFT_TOKENS = 4
# The longest repetition that is looked for first: a single token that came before says too little about the next.
_LONGEST, _SHORTEST = 3, 2

Seen = NDArray[np.bool_]


@dataclass(frozen=True)
class Draft:
    """Guessed tokens.

    Attributes:
        ids: In their order.
        choices: What each was drawn from; None where nothing was drawn, so that each has the probability 1.
    """

    ids: tuple[int, ...] = ()
    choices: tuple[Candidates, ...] | None = None

    def first(self, count: int) -> Draft:
        """Return the first guesses alone."""
        return Draft(self.ids[:count], None if self.choices is None else self.choices[:count])


NO_DRAFT = Draft()


class Drafter(Protocol):
    """Who guesses."""

    def propose(self, ids: Sequence[int], count: int, seen: Seen | None) -> Draft:
        """Guess the tokens after some.

        Args:
            ids: The sequence so far. It may have changed since the last call in any way.
            count: Guesses, at most; 0 or less asks for none.
            seen: bool ``(V,)``: for a repetition penalty.
        """
        ...


class PromptLookup:
    """Guesses that the text goes on as it did when its last tokens came before (https://github.com/apoorvumang/prompt-lookup-decoding).

    Every run of two and of three tokens is filed under where it was last seen to go on, so that a step costs as little
    after a long prompt as after a short one.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._ids: list[int] = []

    def propose(self, ids: Sequence[int], count: int, seen: Seen | None) -> Draft:
        """See `Drafter`."""
        filed = len(self._ids)
        if list(ids[:filed]) != self._ids:  # a window has moved
            self._places, self._ids, filed = {}, [], 0
        # What the text ends with is not filed yet: it would be found where it stands.
        for end in range(filed + 1, len(ids)):
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._places[tuple(ids[end - length : end])] = end
        self._ids = list(ids[:-1])
        for length in range(min(_LONGEST, len(ids)), _SHORTEST - 1, -1):
            place = self._places.get(tuple(ids[-length:]))
            if place is not None:
                return Draft(tuple(ids[place : place + max(count, 0)]))
        return NO_DRAFT


class DraftModel:
    """Guesses with a smaller model, whose tokens are chosen as the answer's are.

    Args:
        sequence: The smaller model; what it has computed is used again.
        context_length: Positions that it holds; further on nothing is guessed.
        vocabulary_size: Ids that both models know.
        sampling: As of the answer.
        generator: Of its own random numbers.
        advance: Computes some ids with the smaller model and gives the scores after the last, or None to stop.
    """

    def __init__(
        self,
        sequence: CachedSequence,
        context_length: int,
        vocabulary_size: int,
        sampling: Sampling,
        generator: np.random.Generator,
        advance: Callable[[Sequence[int]], NDArray[np.float32] | None],
    ) -> None:
        self._sequence = sequence
        self._context_length = context_length
        self._size = vocabulary_size
        self._sampling = sampling
        self._generator = generator
        self._advance = advance

    def propose(self, ids: Sequence[int], count: int, seen: Seen | None) -> Draft:
        """See `Drafter`."""
        so_far = list(ids)
        seen = None if seen is None else seen.copy()
        tokens: list[int] = []
        choices: list[Candidates] = []
        # The last guess is not computed here: only what it is guessed from.
        count = min(count, self._context_length - len(so_far) + 1)
        if count > 0:
            self._sequence.reuse(so_far)
        while len(tokens) < count:
            scores = self._advance(so_far)
            if scores is None:
                break
            size = self._size
            choice = candidates(scores[:size], self._sampling, None if seen is None else seen[:size])
            token = draw(choice, self._generator)
            tokens.append(token)
            choices.append(choice)
            so_far.append(token)
            if seen is not None:
                seen[token] = True
        return Draft(tuple(tokens), tuple(choices))


def verify(
    rows: NDArray[np.float32],
    draft: Draft,
    sampling: Sampling,
    generator: np.random.Generator,
    seen: Seen | None,
) -> list[int]:
    """Return the next tokens: the guesses up to the first that is refused, and one of the model's own.

    Args:
        rows: float32 ``(n + 1, V)``: the scores after the text, and after each of the n guesses.
        draft: The guesses.
        sampling: How tokens are chosen.
        generator: Of the random numbers.
        seen: bool ``(V,)``; the tokens that are returned are added to it.

    Raises:
        ExecutionError: The scores hold a NaN or infinity.
    """
    tokens: list[int] = []
    for place, guess in enumerate(draft.ids):
        choice = candidates(rows[place], sampling, seen)
        drawn_from = None if draft.choices is None else draft.choices[place]
        if not _accepts(choice, guess, drawn_from, generator):
            return [*tokens, _note(draw(_what_is_left(choice, guess, drawn_from), generator), seen)]
        tokens.append(_note(guess, seen))
    return [*tokens, _note(draw(candidates(rows[len(draft.ids)], sampling, seen), generator), seen)]


def _note(token: int, seen: Seen | None) -> int:
    if seen is not None:
        seen[token] = True
    return token


def _accepts(choice: Candidates, guess: int, drawn_from: Candidates | None, generator: np.random.Generator) -> bool:
    wanted = probability(choice, guess)
    given = 1.0 if drawn_from is None else probability(drawn_from, guess)
    # Certain answers use up no random number: where the likeliest tokens are taken, there is no chance at all.
    return wanted > 0 and (wanted >= given or generator.random() * given < wanted)


def _what_is_left(choice: Candidates, guess: int, drawn_from: Candidates | None) -> Candidates:
    """Return ``max(p - q, 0)``, made to sum to 1."""
    if drawn_from is None:
        weights = np.where(choice.ids == guess, 0.0, choice.probabilities)
    else:
        order = np.argsort(drawn_from.ids)
        places = np.searchsorted(drawn_from.ids, choice.ids, sorter=order).clip(max=order.size - 1)
        found = order[places]
        given = np.where(drawn_from.ids[found] == choice.ids, drawn_from.probabilities[found], 0.0)
        weights = np.maximum(choice.probabilities - given, 0.0)
    total = weights.sum()
    # A refusal means that q has more of the guess than p, so p has more of something else; but for rounding.
    return Candidates(choice.ids, weights / total) if total > 0 else choice
