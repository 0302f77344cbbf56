"""One answer at a time: who may use a program, and who waits."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Protocol

__all__ = ["Ticket", "Turns"]

# How soon a waiting thread notices that it was cancelled, that its deadline has passed, or that who it waits for is gone.
_LOOK_S = 0.02


class _Abandonable(Protocol):
    def abandon(self) -> None: ...


class Ticket:
    """Who asks for a turn.

    Attributes:
        thread: The thread that last asked it for text.
        running: Whether it is at work, and not waiting for somebody to ask it for more.
        holder: What ends it where it is abandoned.
    """

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.running = False
        self.holder: weakref.ref[_Abandonable] | None = None

    def abandoned_to(self, thread: threading.Thread) -> bool:
        """Say whether nobody can go on with it: it rests, and its thread is the one that asks, or has ended."""
        return not self.running and (self.thread is thread or not self.thread.is_alive())


class Turns:
    """A lock that lasts as long as an answer, which its reader may leave half read.

    A thread that asks for a turn waits for the one before. But an answer that was left half read by the same thread, or by
    one that has ended, would be waited for without end: it is abandoned, and its turn taken.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._owner: Ticket | None = None

    def take(self, ticket: Ticket, proceed: Callable[[], bool], *, at_once: bool = False) -> bool:
        """Wait for a turn, and say whether it came before `proceed` said no.

        Args:
            ticket: Who asks.
            proceed: Asked again and again while it waits.
            at_once: End the answer of whoever has the turn, after the step that it may be computing.
        """
        while proceed():
            with self._changed:
                owner = self._owner
                if owner is None:
                    self._owner = ticket
                    return True
                if not at_once and not owner.abandoned_to(threading.current_thread()):
                    self._changed.wait(_LOOK_S)
                    continue
            holder = owner.holder() if owner.holder is not None else None
            if holder is None:
                self.give_back(owner)  # its reader is gone
            else:
                holder.abandon()
        return False

    def give_back(self, ticket: Ticket) -> None:
        """End a turn; without one, nothing happens."""
        with self._changed:
            if self._owner is ticket:
                self._owner = None
                self._changed.notify_all()
