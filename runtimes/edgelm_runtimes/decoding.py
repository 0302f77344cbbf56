"""The loop of a language model: compute, choose a token, show its text, and see whether that was the last."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ExecutionError
from edgelm_runtimes.detokenize import Detokenizer
from edgelm_runtimes.generation_result import FinishReason, GenerationResult, SpeculationCounts
from edgelm_runtimes.generation_settings import GenerationSettings
from edgelm_runtimes.near_ties import NearTies
from edgelm_runtimes.prompt import fit
from edgelm_runtimes.sequence import CachedSequence
from edgelm_runtimes.speculation import NO_DRAFT, Draft, Drafter, DraftModel, PromptLookup, verify
from edgelm_runtimes.stop_text import StopText
from edgelm_runtimes.turns import Ticket, Turns

__all__ = ["Decoding", "Engine", "Request"]


@dataclass
class Engine:
    """A program with its cache, and who may use it.

    Attributes:
        sequence: The program, and what it has computed.
        turns: One answer at a time.
        clock: Gives seconds.
        context_length: The most positions.
        vocabulary_size: Scores of a step.
        chunk: Tokens of a prompt that are computed in one call.
        short_chunk: Likewise where there is a deadline to be kept.
        draft_tokens: Guesses that one step checks.
        ties: What is known of the program's scores where it computes several positions at once.
        closed: Whether the session was closed.
    """

    sequence: CachedSequence
    turns: Turns
    clock: Callable[[], float]
    context_length: int
    vocabulary_size: int
    chunk: int
    short_chunk: int
    draft_tokens: int
    ties: NearTies = field(default_factory=NearTies)
    closed: bool = False


@dataclass(frozen=True)
class Request:
    """One prompt, ready to be answered.

    Attributes:
        ids: The prompt, fitted into the context.
        prompt_tokens: Its tokens before that.
        settings: What was asked for.
        stop_ids: Tokens that end the answer.
        text: Turns the answer's ids into text; None where there is no tokenizer: then there are no pieces, only ids.
        tokenize_s: Seconds that were spent on it so far.
        guess: Who guesses: nobody, a look into the text, or a smaller model.
    """

    ids: list[int]
    prompt_tokens: int
    settings: GenerationSettings
    stop_ids: frozenset[int]
    text: Detokenizer | None
    tokenize_s: float
    guess: PromptLookup | Engine | None = None


class Decoding:
    """The state of one answer.

    Args:
        engine: The model.
        request: What it is asked.

    Attributes:
        cancelled: Set from any thread to end it before the next step.
        result: None until it has ended.
        ticket: Its place among those that use the model.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.cancelled = False
        self.result: GenerationResult | None = None
        self.ticket = Ticket()
        self._engine = engine
        self._request = request
        self._settings = request.settings
        self._began: float | None = None
        self._reason: FinishReason | None = None
        self._ids = list(request.ids)  # what the model sees
        self._answer: list[int] = []
        self._shown: list[str] = []
        self._stop = StopText(request.settings.stops)
        self._cached = 0
        self._prefilled = 0
        self._prefill_s: float | None = None
        self._ttft_s: float | None = None
        self._token_s: list[float] = []
        self._left_out = request.prompt_tokens - len(request.ids)
        self._moves = 0
        self._guesses = [0, 0, 0]  # steps, proposed, accepted
        self._plain = 0  # positions that were computed in the calls that are made without guesses

    def pieces(self) -> Generator[str, None, None]:
        """Yield the answer as it comes.

        Raises:
            ExecutionError: The runtime failed, or the session was closed before the first piece.
        """
        self._began = self._engine.clock() - self._request.tokenize_s
        taken: list[Turns] = []
        try:
            if self._engine.closed:
                raise ExecutionError("This session was closed: load the bundle again.")
            if self._take_turns(taken):
                yield from self._decode()
        except (GeneratorExit, KeyboardInterrupt):
            self._reason = self._reason or "cancelled"
            raise
        finally:
            for turns in taken:
                turns.give_back(self.ticket)
            if self._reason is not None:
                self.result = self._make_result(self._reason)

    def close(self) -> None:
        """Make a result for an answer that was never begun."""
        if self._began is None and self.result is None:
            self._began = self._engine.clock()
            self.result = self._make_result("cancelled")

    def _take_turns(self, taken: list[Turns]) -> bool:
        """Wait for every model that is needed, always in the same order: two answers must not wait for each other."""
        guess = self._request.guess
        wanted = {self._engine.turns, *([guess.turns] if isinstance(guess, Engine) else [])}
        for turns in sorted(wanted, key=id):
            if not turns.take(self.ticket, lambda: self._proceed(0)):
                return False
            taken.append(turns)
        return True

    def _proceed(self, tokens: int) -> bool:
        """Say whether a call of so many tokens should be made; if not, the reason is noted."""
        if self.cancelled or self._engine.closed:
            self._reason = "cancelled"
        elif self._settings.deadline_s is not None:
            expected = self._engine.sequence.expected_s(tokens) if tokens else 0.0
            if self._elapsed() + expected >= self._settings.deadline_s:
                self._reason = "deadline"
        return self._reason is None

    def _elapsed(self) -> float:
        return self._engine.clock() - (self._began or 0.0)

    def _decode(self) -> Iterator[str]:
        sampling, sequence = self._settings.sampling, self._engine.sequence
        generator = np.random.default_rng(sampling.seed)
        seen = None
        if sampling.repetition_penalty != 1:
            seen = np.zeros(self._engine.vocabulary_size, np.bool_)
            seen[self._ids] = True
        drafter = self._drafter(generator)
        self._cached = self._plain = sequence.reuse(self._ids)
        draft = NO_DRAFT
        while self._reason is None:
            began = self._engine.clock()
            if self._ttft_s is not None:
                draft = self._propose(drafter, seen)
            rows = self._compute(draft)
            if self._ttft_s is None:
                self._prefilled = len(sequence.ids) - self._cached
            checked = draft
            if rows is not None and draft.ids and sampling.certain:
                rows, checked = self._settle(rows, draft, seen)
            if rows is None:
                break
            tokens = verify(rows, checked, sampling, generator, seen)
            self._rewind(len(self._ids) + len(tokens) - 1)  # what was computed for refused guesses
            self._count(draft, len(tokens) - 1)
            yield from self._show(tokens, self._engine.clock() - began)
            self._make_room()
        if rest := self._rest():
            self._shown.append(rest)
            yield rest

    def _compute(self, draft: Draft) -> NDArray[np.float32] | None:
        """Return the scores after the last token, and after each guess; None where the answer ends before."""
        engine = self._engine
        chunk = engine.chunk if self._settings.deadline_s is None else engine.short_chunk
        ids = [*self._ids, *draft.ids]
        plain = self._plain >= len(engine.sequence.ids) and not draft.ids
        scores = engine.sequence.advance(
            ids, max(chunk, len(draft.ids) + 1), self._proceed, logits="all" if draft.ids else "last"
        )
        self._plain = len(engine.sequence.ids) if plain else self._plain
        return scores if scores is None or draft.ids else scores[None, :]

    def _settle(
        self, rows: NDArray[np.float32], draft: Draft, seen: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32] | None, Draft]:
        """Return the rows and guesses up to a near tie, which is settled without guesses; None where the answer ends.

        All that was guessed before is computed again, a position a call: not only a row among others differs, but the keys and
        values that it leaves do. The guesses behind the tie are dropped. The first time all rows are computed again: how much
        they differ says what a near tie is.
        """
        ties = self._engine.ties
        measured = ties.difference is not None
        place = ties.first(rows, draft, self._settings.sampling, seen) if measured else len(draft.ids)
        if place is None:
            return rows, draft
        among = rows[: place + 1].copy()  # the next call overwrites it
        settled = among.copy()
        for again in range(place if measured else 0, place + 1):
            alone = self._alone([*self._ids, *draft.ids[:again]])
            if alone is None:
                return None, draft
            settled[again] = alone
        if not measured:
            ties.measure(among, settled)
        return settled, draft.first(place)

    def _alone(self, ids: list[int]) -> NDArray[np.float32] | None:
        """Return the scores after the last token, as they are without guesses; None where the answer ends before."""
        sequence = self._engine.sequence
        self._plain = min(self._plain, len(ids) - 1)
        sequence.rewind(self._plain)
        scores = sequence.advance(ids, 1, self._proceed)
        self._plain = len(sequence.ids)
        return scores

    def _rewind(self, count: int) -> None:
        self._engine.sequence.rewind(count)
        self._plain = min(self._plain, count)

    def _drafter(self, generator: np.random.Generator) -> Drafter | None:
        guess = self._request.guess
        if not isinstance(guess, Engine):
            return guess
        return DraftModel(
            guess.sequence,
            guess.context_length,
            min(guess.vocabulary_size, self._engine.vocabulary_size),
            self._settings.sampling,
            generator.spawn(1)[0],
            lambda ids: guess.sequence.advance(ids, guess.chunk, lambda tokens: self._proceed(0)),
        )

    def _propose(self, drafter: Drafter | None, seen: NDArray[np.bool_] | None) -> Draft:
        behind = len(self._ids) - len(self._engine.sequence.ids)
        if drafter is None or behind > 1:  # a window has moved: first its half is computed
            return NO_DRAFT
        room = self._engine.context_length - len(self._ids)
        wanted = self._settings.max_new_tokens - len(self._answer) - 1
        count = min(self._engine.draft_tokens, room, wanted)
        return drafter.propose(self._ids, count, seen) if count > 0 else NO_DRAFT

    def _count(self, draft: Draft, accepted: int) -> None:
        if draft.ids:
            more = (1, len(draft.ids), accepted)
            self._guesses = [total + number for total, number in zip(self._guesses, more, strict=True)]

    def _show(self, tokens: list[int], step_s: float) -> Iterator[str]:
        """Yield the text of a step's tokens, up to where the answer ends."""
        text = self._request.text
        for token in tokens:
            if self._ttft_s is None:
                self._ttft_s, self._prefill_s = self._elapsed(), step_s
            elif token not in self._request.stop_ids:
                self._token_s.append(step_s / len(tokens))
            if token in self._request.stop_ids:
                self._reason = "stop_token"
                return
            self._ids.append(token)
            self._answer.append(token)
            piece = "" if text is None else self._stop.push(text.push(token))
            if self._stop.found is not None:
                self._reason = "stop_string"
            elif len(self._answer) == self._settings.max_new_tokens:
                self._reason = "length"
            if piece:
                self._shown.append(piece)
                yield piece
            if self._reason is not None:
                return

    def _rest(self) -> str:
        """Return the text that was held back."""
        text = "" if self._request.text is None else self._stop.push(self._request.text.rest())
        if self._stop.found is not None:
            self._reason = "stop_string"
        return text + self._stop.rest()

    def _make_room(self) -> None:
        """See to it that the last token has a position."""
        if self._reason is not None or len(self._ids) <= self._engine.context_length:
            return
        kept = self._settings.kept
        if kept is None:
            self._reason = "context"
            return
        ids = fit(self._ids, kept + (self._engine.context_length - kept + 1) // 2, kept)
        self._left_out += len(self._ids) - len(ids)
        self._moves += 1
        self._ids = ids
        self._rewind(self._engine.sequence.reuse(ids))

    def _make_result(self, reason: FinishReason) -> GenerationResult:
        return GenerationResult(
            text="".join(self._shown),
            ids=tuple(self._answer),
            finish_reason=reason,
            stop=self._stop.found,
            prompt_tokens=self._request.prompt_tokens,
            cached_tokens=self._cached,
            prefill_tokens=self._prefilled,
            prefill_s=self._prefill_s,
            ttft_s=self._ttft_s,
            token_s=tuple(self._token_s),
            total_s=self._elapsed(),
            left_out_tokens=self._left_out,
            window_moves=self._moves,
            speculation=SpeculationCounts(*self._guesses) if self._request.guess is not None else None,
        )
