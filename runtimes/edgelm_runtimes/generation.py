"""An answer that comes piece by piece: of a language model, or a translation."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from edgelm.errors import ExecutionError
from edgelm_runtimes.generation_result import GenerationResult
from edgelm_runtimes.translation_result import TranslationResult
from edgelm_runtimes.turns import Ticket

__all__ = ["Generation", "Pieces", "Translation"]

Result = TypeVar("Result")
Made = TypeVar("Made", covariant=True)


class _Decoding(Protocol[Made]):
    """What makes an answer: `edgelm_runtimes.decoding.Decoding`, or `edgelm_runtimes.translation_run.TranslationRun`."""

    cancelled: bool
    ticket: Ticket

    @property
    def result(self) -> Made | None: ...

    def pieces(self) -> Generator[str, None, None]: ...

    def close(self) -> None: ...


class Pieces(Generic[Result]):
    """An iterator over the pieces of an answer.

    Nothing is computed before the first piece is asked for. Each piece is at least one whole character. Leaving it half
    read is fine: `close` it, use it in a ``with`` block, or drop it, and the session is free again. A session that is
    asked for the next answer in the same thread ends one that was left half read by itself.

    Several threads may ask for pieces; each piece goes to one of them.
    """

    def __init__(self, decoding: _Decoding[Result]) -> None:
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
    def result(self) -> Result:
        """What is known of the answer, once it has ended.

        Raises:
            ExecutionError: It has not ended, or failed.
        """
        result = self._decoding.result
        if result is None:
            raise ExecutionError("The answer has not ended: read it to its end, or call finish() or close() first.")
        return result

    def finish(self) -> Result:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Generation(Pieces[GenerationResult]):
    """An answer of a language model. Made by `Session.generate` and `Session.chat`."""


class Translation(Pieces[TranslationResult]):
    """A translation that comes piece by piece. Made by `Session.translate` with ``stream=True``."""
