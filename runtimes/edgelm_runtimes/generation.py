"""An answer that comes piece by piece, and what is known of it in the end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from edgelm.errors import ExecutionError
from edgelm_runtimes.turns import Ticket

if TYPE_CHECKING:
    from edgelm_runtimes.decoding import Decoding

__all__ = ["FinishReason", "Generation", "GenerationResult", "SpeculationCounts"]

FinishReason = Literal["stop_token", "stop_string", "length", "context", "deadline", "cancelled"]


@dataclass(frozen=True)
class SpeculationCounts:
    """How good the guesses were.

    Attributes:
        steps: Steps that guesses were checked in.
        proposed: Tokens guessed.
        accepted: Tokens of them that were taken.
    """

    steps: int
    proposed: int
    accepted: int


@dataclass(frozen=True)
class GenerationResult:
    """An answer that has ended.

    Attributes:
        text: What was streamed, as one text: without the stop token or string, and in whole characters.
        ids: Tokens of the answer, without the stop token, with those of a stop string.
        finish_reason: ``stop_token``; ``stop_string``; ``length``: `max_new_tokens` were made; ``context``: the model
            holds no more; ``deadline``; ``cancelled``.
        stop: The stop string that was met; None where none was.
        prompt_tokens: Tokens of the prompt, as given.
        cached_tokens: Tokens of the prompt that an earlier answer had computed already.
        prefill_tokens: Tokens of the prompt that were computed.
        prefill_s: Seconds that these took; None where none was computed to the end.
        ttft_s: Time to first token: seconds from the call to the choice of the first, with tokenizing and waiting for
            other answers; None where there was none.
        token_s: Seconds for each further token of the answer; those that came in one step share it evenly. The time
            between, in which nobody asked for more, is not in it.
        total_s: Seconds from the call to the end.
        left_out_tokens: Tokens of the prompt or the answer that a window left out of what the model saw.
        window_moves: Times that the answer came to the end of the context, and half of it was computed anew.
        speculation: None where nothing was guessed.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    prefill_s: float | None
    ttft_s: float | None
    token_s: tuple[float, ...]
    total_s: float
    left_out_tokens: int
    window_moves: int
    speculation: SpeculationCounts | None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one; None where there are none."""
        total = sum(self.token_s)
        return len(self.token_s) / total if total > 0 else None


class Generation:
    """An iterator over the pieces of an answer. Made by `Session.generate` and `Session.chat`.

    Nothing is computed before the first piece is asked for. Each piece is at least one whole character. Leaving it half
    read is fine: `close` it, use it in a ``with`` block, or drop it, and the session is free again. A session that is
    asked for the next answer in the same thread ends one that was left half read by itself.

    Several threads may ask for pieces; each piece goes to one of them.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._pieces = decoding.pieces()
        self._busy = threading.Lock()
        self._abandoned = False
        self._ticket: Ticket = decoding.ticket
        self._ticket.holder = weakref.ref(self)

    @property
    def ended(self) -> bool:
        """Whether there is a result. An answer that failed has none."""
        return self._decoding.result is not None

    @property
    def result(self) -> GenerationResult:
        """What is known of the answer, once it has ended.

        Raises:
            ExecutionError: It has not ended, or failed.
        """
        result = self._decoding.result
        if result is None:
            raise ExecutionError("The answer has not ended: read it to its end, or call finish() or close() first.")
        return result

    def finish(self) -> GenerationResult:
        """Read to the end and return what is known then.

        Raises:
            ExecutionError: The runtime failed.
        """
        for _ in self:
            pass
        return self.result

    def cancel(self) -> None:
        """End the answer before its next step, with what there is. May be called from any thread and signal handler."""
        self._decoding.cancelled = True

    def close(self) -> None:
        """End the answer and free the session: at once, or after the step that another thread is computing."""
        self.cancel()
        if self._ticket.running and self._ticket.thread is threading.current_thread():
            return  # called from a signal handler, amid a step
        with self._busy:
            self._pieces.close()
            self._decoding.close()

    def abandon(self) -> None:
        """End the answer, as its session needs the turn; to ask it for more is an error from now on."""
        with self._busy:
            self._abandoned = self._decoding.result is None
            self._pieces.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._busy:
            if self._abandoned:
                raise ExecutionError(
                    "This answer was ended, as its session was closed or asked by the same thread for another one: "
                    "read one to its end before the next, or load the bundle twice."
                )
            self._ticket.thread = threading.current_thread()
            self._ticket.running = True
            try:
                return next(self._pieces)
            finally:
                self._ticket.running = False

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
