"""One call of a translation: its sources read and answered, some side by side, until all are or time is up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ExecutionError
from edgelm_runtimes.beam_search import Beams, beam_search
from edgelm_runtimes.detokenize import Detokenizer
from edgelm_runtimes.row_decoding import Answer, Target, decode_rows
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from edgelm_runtimes.translation_result import TranslationEnd, TranslationResult
from edgelm_runtimes.translation_settings import TranslationSettings
from edgelm_runtimes.turns import Ticket, Turns

__all__ = ["ReadSource", "Request", "TranslationEngine", "TranslationRun"]

# Rows that are computed side by side, at most. A step reads the weights once for all of them. Measured with ONNX Runtime 1.32,
# one thread, 6 layers of width 512 and 32,128 tokens: a step of 16 rows takes 2.7 times as long as one of a single row in
# float32, 6 times in int8 and 14 times in int4. More rows would only take memory.
_ROWS = 16


@dataclass
class TranslationEngine:
    """A program, who may use it, and how fast it was.

    Attributes:
        program: The encoder-decoder.
        turns: One call at a time.
        clock: Gives seconds.
        closed: Whether the session was closed.
        step_s: Seconds of the last step, by the rows that it computed.
        encode_s: Seconds that reading one source token took, the last time.
    """

    program: Seq2SeqProgram
    turns: Turns
    clock: Callable[[], float]
    closed: bool = False
    step_s: dict[int, float] = field(default_factory=dict)
    encode_s: float = 0.0


@dataclass(frozen=True)
class ReadSource:
    """A source, ready to be read.

    Attributes:
        values: int32 ids ``(S,)`` or float32 frames ``(n, M)``.
        cut: Tokens that were left out.
    """

    values: NDArray[Any]
    cut: int


@dataclass(frozen=True)
class Request:
    """What one call asks.

    Attributes:
        sources: In the order of the results.
        target: What answers begin and end with; a beginning that was given is part of its prefix.
        given: How many tokens of the prefix were given.
        settings: How answers are looked for.
        detokenizer: Makes what turns the ids of an answer into text; gives None where there is no tokenizer.
        tokenize_s: Seconds that were spent on it so far.
        padding_id: Fills up sources that are read together.
    """

    sources: tuple[ReadSource, ...]
    target: Target
    given: int
    settings: TranslationSettings
    detokenizer: Callable[[], Detokenizer | None]
    tokenize_s: float
    padding_id: int = 0


class TranslationRun:
    """The state of one call.

    Args:
        engine: The model.
        request: What it is asked.

    Attributes:
        cancelled: Set from any thread to end it before the next step.
        results: Of each source, in order; empty until all have ended.
        ticket: Its place among those that use the model.
    """

    def __init__(self, engine: TranslationEngine, request: Request) -> None:
        self.cancelled = False
        self.results: tuple[TranslationResult, ...] = ()
        self.ticket = Ticket()
        self._engine = engine
        self._request = request
        self._settings = request.settings
        self._began: float | None = None
        self._end: TranslationEnd | None = None
        self._made: dict[int, TranslationResult] = {}
        self._text = request.detokenizer()  # of the pieces, where one source is answered with one beam

    @property
    def beams(self) -> int:
        """Answers that are looked for side by side."""
        return self._settings.beams

    @property
    def result(self) -> TranslationResult | None:
        """Of the only source; None until it has ended."""
        return self.results[0] if self.results else None

    def pieces(self) -> Generator[str, None, None]:
        """Yield the text of the first source as it comes, where it is the only one and has one beam; else nothing.

        Raises:
            ExecutionError: The runtime failed, or the session was closed.
        """
        self._began = self._engine.clock() - self._request.tokenize_s
        taken = False
        try:
            if self._engine.closed:
                raise ExecutionError("This session was closed: load the bundle again.")
            taken = self._engine.turns.take(self.ticket, lambda: self._proceed(0.0))
            if taken:
                for group in self._groups():
                    if not self._proceed(0.0):
                        break
                    yield from self._answer(group)
            self._finish(self._end or "cancelled")
        except (GeneratorExit, KeyboardInterrupt):
            self._finish("cancelled")
            raise
        finally:
            if taken:
                self._engine.turns.give_back(self.ticket)

    def close(self) -> None:
        """Make results for a call that was never begun."""
        if self._began is None and not self.results:
            self._began = self._engine.clock()
            self._finish("cancelled")

    def _groups(self) -> Iterator[list[int]]:
        """Yield the sources that are answered side by side: of about the same length, shortest first."""
        sources = self._request.sources
        counts = self._engine.program.row_counts
        size = 1 if counts is not None or sources[0].values.ndim > 1 else max(1, _ROWS // self._settings.beams)
        order = sorted(range(len(sources)), key=lambda index: len(sources[index].values))
        for first in range(0, len(order), size):
            yield order[first : first + size]

    def _proceed(self, expected_s: float) -> bool:
        """Say whether something should be done that takes so many seconds; if not, the reason is noted."""
        if self.cancelled or self._engine.closed:
            self._end = "cancelled"
        elif self._settings.deadline_s is not None and self._elapsed() + expected_s >= self._settings.deadline_s:
            self._end = "deadline"
        return self._end is None

    def _elapsed(self) -> float:
        return self._engine.clock() - (self._began or 0.0)

    def _answer(self, group: list[int]) -> Iterator[str]:
        """Read some sources, answer them, and note their results."""
        request, settings = self._request, self._settings
        encode_s = self._encode([request.sources[index] for index in group])
        if encode_s is None:
            return
        steps = _Steps(self._engine, self._proceed)
        beams = [Beams() for _ in group]
        rows = [Answer() for _ in group]
        if settings.beams > 1:
            program = self._engine.program
            search = beam_search(steps.forward, program.reorder, request.target, beams, settings.beams)
        else:
            search = decode_rows(steps.forward, request.target, rows, settings.sampling)
        streams = len(request.sources) == 1 and settings.beams == 1
        ttft_s: float | None = None
        shown = 0
        token_s: list[float] = []
        try:
            for _ in search:
                if ttft_s is None:
                    ttft_s = self._elapsed()
                else:
                    token_s.append(steps.last_s)
                if streams and self._text is not None and len(rows[0].ids) > shown:
                    shown += 1
                    if piece := self._text.push(rows[0].ids[-1]):
                        yield piece
        finally:  # also of an answer that is left half read
            answers = [each.best(request.target) for each in beams] if settings.beams > 1 else rows
            for index, answer, source in zip(group, answers, beams, strict=True):
                ended = answer.reason if settings.beams == 1 or source.done else None
                reason = ended or self._end or "cancelled"
                self._made[index] = self._result(index, answer, reason, len(group), encode_s, ttft_s, tuple(token_s))
        if streams and self._text is not None and (rest := self._text.rest()):
            yield rest

    def _encode(self, sources: Sequence[ReadSource]) -> float | None:
        """Read sources; return the seconds that it took, or None where there is no time for it."""
        engine, longest = self._engine, max(len(source.values) for source in sources)
        if not self._proceed(engine.encode_s * longest * len(sources)):
            return None
        batch = np.full((len(sources), longest, *sources[0].values.shape[1:]), self._request.padding_id)
        batch = batch.astype(sources[0].values.dtype)
        for row, source in zip(batch, sources, strict=True):
            row[: len(source.values)] = source.values
        lengths = np.array([len(source.values) for source in sources], np.int32)
        began = engine.clock()
        engine.program.encode(batch, lengths, self._settings.beams)
        seconds = engine.clock() - began
        engine.encode_s = seconds / (longest * len(sources))
        return seconds

    def _finish(self, reason: TranslationEnd) -> None:
        """Make results of all sources, also of those that it came to no answer for."""
        for index in range(len(self._request.sources)):
            if index not in self._made:
                self._made[index] = self._result(index, Answer(), reason, 1, None, None, ())
        self.results = tuple(self._made[index] for index in range(len(self._made)))

    def _result(
        self,
        index: int,
        answer: Answer,
        reason: TranslationEnd,
        sources: int,
        encode_s: float | None,
        ttft_s: float | None,
        token_s: tuple[float, ...],
    ) -> TranslationResult:
        request = self._request
        source = request.sources[index]
        given = request.target.prefix[len(request.target.prefix) - request.given :]
        ids = (*given, *answer.ids)
        text = request.detokenizer()
        return TranslationResult(
            text="" if text is None else "".join(text.push(token) for token in ids) + text.rest(),
            ids=ids,
            score=request.target.score(answer.log_probability, answer.tokens) if answer.tokens else None,
            finish_reason=reason,
            source_tokens=len(source.values),
            cut_tokens=source.cut,
            sources=sources,
            tokenize_s=request.tokenize_s,
            encode_s=encode_s,
            ttft_s=ttft_s,
            token_s=token_s[: max(0, len(answer.ids) - 1)],
            total_s=self._elapsed(),
        )


class _Steps:
    """Steps of a program, each asked for before and measured.

    Attributes:
        last_s: Seconds of the last one.
    """

    def __init__(self, engine: TranslationEngine, proceed: Callable[[float], bool]) -> None:
        self.last_s = 0.0
        self._engine = engine
        self._proceed = proceed

    def forward(self, ids: NDArray[np.int32], start: int) -> NDArray[np.float32] | None:
        """Compute tokens as `Seq2SeqProgram.forward`, or return None where there is no time for it."""
        engine, rows = self._engine, len(ids)
        if not self._proceed(engine.step_s.get(rows, 0.0)):
            return None
        began = engine.clock()
        scores = engine.program.forward(ids, start)
        self.last_s = engine.clock() - began
        if ids.shape[1] == 1:
            engine.step_s[rows] = self.last_s
        return scores
