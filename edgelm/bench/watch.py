"""Watches the machine while it measures: what other processes do, clocks, temperatures, limits.

A thread reads ``/proc/stat`` twice a second (some 50 µs of one core) and, less often, the clocks and temperatures. What the
benchmark's own processes used is subtracted, so what is left is someone else's: also other containers' and, as far as the
kernel tells of stolen time, other virtual machines'.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType

from edgelm_runtimes.machine import machine_facts

from edgelm.bench.context import Conditions
from edgelm.bench.findings import Background

__all__ = ["Snapshot", "Watcher", "busy_s", "process_s"]

_ROOT = Path("/")
_PERIOD_S = 0.5
_CONDITIONS_S = 5.0
# user, nice, system, irq, softirq, steal of the first line of /proc/stat, proc(5); not idle, not waiting for a disk. Guests
# are in user already.
_BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Snapshot:
    """The machine at one moment.

    Attributes:
        at_s: By `time.perf_counter`.
        others_cores: What other processes did since the snapshot before; None of the first, and where it is not known.
        conditions: Clocks, temperatures and limits; None where they were not read this time.
    """

    at_s: float
    others_cores: float | None
    conditions: Conditions | None


def busy_s(stat: str, ticks_per_s: int) -> float:
    """Return the time that all cores were at work since the start of the system.

    Args:
        stat: The text of ``/proc/stat``.
        ticks_per_s: The kernel's unit.

    Raises:
        ValueError: It is another text.
    """
    words = stat.partition("\n")[0].split()
    if words[:1] != ["cpu"] or len(words) <= max(_BUSY_COLUMNS) + 1:
        raise ValueError(f"no line of all processors in {stat[:40]!r}")
    return sum(int(words[1 + column]) for column in _BUSY_COLUMNS) / ticks_per_s


def process_s(stat: str, ticks_per_s: int) -> float:
    """Return the time that a process and its threads were at work.

    Args:
        stat: The text of ``/proc/PID/stat``; a name in it may hold anything, so what counts follows its last bracket.
        ticks_per_s: The kernel's unit.

    Raises:
        ValueError: It is another text.
    """
    words = stat.rpartition(")")[2].split()
    if len(words) < 13:
        raise ValueError(f"no line of a process in {stat[:40]!r}")
    return (int(words[11]) + int(words[12])) / ticks_per_s


class Watcher:
    """A thread that takes snapshots until it is stopped. A context manager.

    Args:
        own: The processes whose work is not someone else's, beside this one.
        period_s: Between two snapshots.
        conditions_s: Between two with clocks and temperatures.
        conditions: Reads them.
        root: Where ``proc`` is.
    """

    def __init__(
        self,
        own: Sequence[int] = (),
        *,
        period_s: float = _PERIOD_S,
        conditions_s: float = _CONDITIONS_S,
        conditions: Callable[[], Conditions] = lambda: Conditions.of(machine_facts()),
        root: Path = _ROOT,
    ) -> None:
        self._own = (os.getpid(), *own)
        self._period_s = period_s
        self._conditions_s = conditions_s
        self._read_conditions = conditions
        self._proc = root / "proc"
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._taken: list[Snapshot] = []
        self._before: tuple[float, float] | None = None
        self._conditions_due = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgelm watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return those so far. It may be asked while the thread runs."""
        return tuple(self._taken)

    def background(self) -> Background | None:
        """Return what other processes did so far; None where the system does not tell."""
        known = [snapshot.others_cores for snapshot in self.snapshots() if snapshot.others_cores is not None]
        if not known:
            return None
        return Background(
            others_cores_mean=round(fmean(known), 4),
            others_cores_max=round(max(known), 4),
            readings=len(known),
            period_s=self._period_s,
        )

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._take()

    def _take(self) -> None:
        now = time.perf_counter()
        others = self._others(now)
        conditions = None
        if now >= self._conditions_due:
            conditions = self._read_conditions()
            self._conditions_due = now + self._conditions_s
        self._taken.append(Snapshot(now, others, conditions))

    def _others(self, now: float) -> float | None:
        try:
            total = busy_s((self._proc / "stat").read_text(encoding="ascii"), self._ticks)
        except (OSError, ValueError):
            return None  # not Linux, or a container that hides it
        own = 0.0
        for pid in self._own:
            # One that ended took its time with it; the period in which it did is then a little too busy.
            with contextlib.suppress(OSError, ValueError):
                own += process_s((self._proc / str(pid) / "stat").read_text(errors="replace"), self._ticks)
        before, self._before = self._before, (now, total - own)
        if before is None or now <= before[0]:
            return None
        # The kernel counts in hundredths of a second, and not all at the same moment: a little below 0 is 0.
        return max(0.0, (total - own - before[1]) / (now - before[0]))
