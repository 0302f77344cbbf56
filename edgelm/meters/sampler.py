"""Reads a meter in the background, at its rate, into arrays of a bounded size."""

from __future__ import annotations

import threading
from types import TracebackType

import numpy as np

from edgelm.errors import MeterError
from edgelm.meters.meter import Meter, Reading
from edgelm.meters.readers import Clock, clock
from edgelm.meters.trace import Trace, make_trace

__all__ = ["DEFAULT_CAPACITY", "Sampler"]

DEFAULT_CAPACITY = 1 << 18
"""Readings that are kept: 4 MiB, 87 minutes at 50 Hz."""

# A reading of a file takes some 20 µs of Python: at 50 Hz a thousandth of one core, which the load does not feel.
_FASTEST_HZ = 50.0
# What must stay free of readings that are kept for their moment.
_MOST_MARKED = 4


class Sampler:
    """A thread that reads a meter until it is stopped.

    >>> with Sampler(meter) as sampler:
    ...     start = sampler.mark()
    ...     run_the_model()
    ...     end = sampler.mark()
    >>> energy_between(sampler.trace(), start, end)

    When its arrays are full it keeps every other reading and reads half as often from then on, so a run of any length is
    covered from its start; the uncertainty grows with the time between readings, and says so. Readings of `mark` stay.

    Args:
        meter: Not open yet; the sampler opens and closes it.
        rate_hz: Readings a second; the meter's own rate otherwise, at most 50. A meter that is pushed sets the pace itself.
        capacity: Readings that are kept at most, at least 16.
        now: The clock of the meter.

    Raises:
        MeterError: The rate or the capacity makes no sense.
    """

    def __init__(
        self, meter: Meter, *, rate_hz: float | None = None, capacity: int = DEFAULT_CAPACITY, now: Clock = clock
    ) -> None:
        rate = min(meter.facts.rate_hz, _FASTEST_HZ) if rate_hz is None else rate_hz
        if rate <= 0 or capacity < 16:
            raise MeterError(f"A sampler needs a rate above 0 and room for 16, and got {rate:g} Hz and {capacity}.")
        self._meter = meter
        self._period_s = 1 / rate
        self._now: Clock = now
        self._time = np.empty(capacity)
        self._value = np.empty(capacity)
        self._marked = np.zeros(capacity, dtype=np.bool_)
        self._count = 0
        self._stride = 1  # of a pushed meter: one of so many readings is kept
        self._arrived = 0
        self._failures = 0
        self._last_failure: str | None = None
        self._reading_s = 0.0
        self._attempts = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Open the meter, read it once, and go on reading in the background.

        Raises:
            MeterError: It cannot be opened or read, or the sampler has been started before.
        """
        if self._thread is not None:
            raise MeterError(f"The sampler of {self._meter.facts.name} was started before. Make a new one.")
        try:
            self._meter.open()
            if not self._meter.facts.pushed:
                self._take(marked=True)
        except MeterError:
            self._meter.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"edgelm sampler {self._meter.facts.name}", daemon=True)
        self._thread.start()

    def mark(self) -> float:
        """Return this moment, with a reading at it: a window between two marks has nothing unknown at its edges.

        A meter that is pushed cannot be read when one likes; of it, this is the moment alone.

        Raises:
            MeterError: The sampler is not running, or the sensor gave nothing.
        """
        if self._thread is None or self._stop.is_set():
            raise MeterError(f"The sampler of {self._meter.facts.name} is not running. Call start() first.")
        if self._meter.facts.pushed:
            return self._now()
        return self._take(marked=True).time_s

    def stop(self) -> None:
        """Read a last time, end the thread and close the meter. A sensor that fails now is told by `trace`."""
        if self._thread is None or self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(timeout=5.0)
        if not self._meter.facts.pushed:
            self._try_to_take()
        self._meter.close()

    def trace(self) -> Trace:
        """Return what was read so far, as a copy. It may be asked while the sampler runs.

        Raises:
            MeterError: There are fewer than two readings; the message says what the sensor said last.
        """
        with self._lock:
            return make_trace(
                self._meter.facts,
                self._time[: self._count],
                self._value[: self._count],
                period_s=self._period_s,
                events=self._events(),
            )

    def _events(self) -> tuple[str, ...]:
        events = []
        if self._failures:
            events.append(f"{self._failures} of {self._attempts} readings failed, the last with: {self._last_failure}")
        running = self._thread is not None and self._thread.is_alive()
        if self._thread is not None and not running and not self._stop.is_set():
            events.append("the sampler's thread ended early")
        busy = self._reading_s / self._attempts / self._period_s if self._attempts else 0.0
        if busy > 0.01 and not self._meter.facts.pushed:
            events.append(f"reading the meter took {busy:.0%} of the time, and draws power itself")
        return tuple(events)

    def _run(self) -> None:
        due = self._now()
        while not self._stop.is_set():
            if self._meter.facts.pushed:
                self._try_to_take()
                continue
            due = max(due + self._period_s, self._now())  # what was missed is not made up for: it would come in a burst
            if not self._stop.wait(max(0.0, due - self._now())):
                self._try_to_take()

    def _try_to_take(self) -> None:
        try:
            self._take(marked=False)
        except MeterError as error:
            self._failures += 1
            self._last_failure = str(error)
            if self._meter.facts.pushed:
                self._stop.wait(self._period_s)  # a line that is cut off fails at once, again and again

    def _take(self, *, marked: bool) -> Reading:
        if self._meter.facts.pushed:
            reading = self._timed_read()  # it blocks until the meter sends: not under the lock that trace() needs
            with self._lock:
                self._keep(reading, marked=marked)
            return reading
        with self._lock:
            reading = self._timed_read()
            self._keep(reading, marked=marked)
            return reading

    def _timed_read(self) -> Reading:
        before = self._now()
        self._attempts += 1
        try:
            return self._meter.read()
        finally:
            self._reading_s += self._now() - before

    def _keep(self, reading: Reading, *, marked: bool) -> None:
        self._arrived += 1
        if self._meter.facts.pushed and self._arrived % self._stride:
            return
        if self._count and reading.time_s <= self._time[self._count - 1]:
            return  # a clock of a coarse step gave the same moment twice; the reading before stands for both
        if self._count == len(self._time):
            self._thin()
        self._time[self._count] = reading.time_s
        self._value[self._count] = reading.value
        self._marked[self._count] = marked
        self._count += 1

    def _thin(self) -> None:
        """Keep every other reading, and those that were marked unless they are many."""
        keep = np.arange(self._count) % 2 == 0
        if int(self._marked[: self._count].sum()) <= self._count // _MOST_MARKED:
            keep |= self._marked[: self._count]
        left = int(keep.sum())
        for array in (self._time, self._value, self._marked):
            array[:left] = array[: self._count][keep]
        self._count = left
        self._period_s *= 2
        self._stride *= 2
