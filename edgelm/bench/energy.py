"""The energy of a benchmark: windows of their own, with the device at rest before and after each.

The turns in which latencies are measured are too short for most sensors, so the load runs again, for as long as the sensor
needs and without a break: rest, first load, rest, second load, …, rest. The rest after one is the rest before the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgelm.bench.meter_choice import MeterChoice
from edgelm.errors import InputError, MeterError
from edgelm.meters import (
    SYNC_PATTERN_S,
    MeterFacts,
    NetEnergy,
    Sampler,
    Trace,
    align,
    energy_between,
    load_meter_csv,
    net,
    window_needed_s,
)
from edgelm.meters.readers import clock

__all__ = [
    "CsvRecorder",
    "Load",
    "Recorded",
    "Recorder",
    "Window",
    "check_seconds",
    "measure_windows",
    "record",
    "window_s",
]

Load = Callable[[float], int]
"""Runs for so many seconds, and returns how often."""

# Of an external meter the rate is known only when its file is read. Ten readings of one that reads every 6 s.
_CSV_WINDOW_S = 60.0


@dataclass(frozen=True)
class Window:
    """One load between two rests.

    Attributes:
        energy: Net of idle.
        count: How often it ran.
    """

    energy: NetEnergy
    count: int


@dataclass(frozen=True)
class Recorded:
    """What a meter saw.

    Attributes:
        windows: In the order of the loads.
        trace: All that was read.
    """

    windows: tuple[Window, ...]
    trace: Trace

    @property
    def facts(self) -> MeterFacts:
        """Of the meter."""
        return self.trace.facts

    @property
    def events(self) -> tuple[str, ...]:
        """What went wrong while reading."""
        return self.trace.events


class Recorder(Protocol):
    """What `measure_windows` reads: a `Sampler`, or an external meter."""

    def mark(self) -> float:
        """Return this moment, by `time.monotonic`."""
        ...

    def trace(self) -> Trace:
        """Return what was read, by the same clock."""
        ...


class CsvRecorder:
    """An external meter that writes a file meanwhile. Its clock is aligned by the loads themselves.

    Args:
        path: The file; it is read when everything has run.
        loads: Start and end of each load, which `measure_windows` adds.
    """

    def __init__(self, path: Path, loads: list[tuple[float, float]]) -> None:
        self._path = path
        self._loads = loads

    def mark(self) -> float:
        """Return this moment, by `time.monotonic`."""
        return clock()

    def trace(self) -> Trace:
        """Return the file's readings by this machine's clock.

        Raises:
            MeterError: The file cannot be read, or does not follow the loads.
        """
        trace = load_meter_csv(self._path)
        return align(trace, self._loads).apply(trace)


def window_s(choice: MeterChoice, asked_s: float | None) -> float:
    """Return how long a window has to be: as asked for, or as the sensor needs, with a tenth to spare."""
    if asked_s is not None:
        return asked_s
    return _CSV_WINDOW_S if choice.meter is None else 1.1 * window_needed_s(choice.meter.facts)


def measure_windows(
    recorder: Recorder,
    work: Sequence[Load],
    seconds: float,
    *,
    loads: list[tuple[float, float]],
    pattern: bool = False,
    rest: Callable[[float], None] = time.sleep,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Window], Trace]:
    """Run each load once in a window between two rests; return the energies in the same order, and what was read.

    Args:
        recorder: Reads the meter, and is running.
        work: What runs in each window.
        seconds: Of each window, and of each rest.
        loads: Takes start and end of all loads, for `CsvRecorder`.
        pattern: Whether to run loads and pauses of different lengths before and after, by which clocks are aligned.
        rest: Waits so many seconds with the device at rest.
        tell: Called with how many windows are done, and how many there are.

    Raises:
        MeterError: The meter gave nothing, or does not cover the windows.
    """
    if pattern:
        _run_pattern(recorder, work[0], loads, rest)
    rests, spans, counts = [_rest(recorder, seconds, rest)], [], []
    for index, load in enumerate(work):
        tell(index, len(work))
        start = recorder.mark()
        counts.append(load(seconds))
        spans.append((start, recorder.mark()))
        loads.append(spans[-1])
        rests.append(_rest(recorder, seconds, rest))
    tell(len(work), len(work))
    if pattern:
        _run_pattern(recorder, work[0], loads, rest)
    trace = recorder.trace()
    idle = [energy_between(trace, *span) for span in rests]
    windows = [
        Window(net(energy_between(trace, *span), idle[index], idle[index + 1]), count)
        for index, (span, count) in enumerate(zip(spans, counts, strict=True))
    ]
    return windows, trace


def record(
    choice: MeterChoice,
    work: Sequence[Load],
    seconds: float,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Recorded:
    """Read the meter that was chosen while loads run, as `measure_windows` does.

    Raises:
        MeterError: The meter cannot be read, or does not cover the windows.
    """
    loads: list[tuple[float, float]] = []
    if choice.csv is not None:
        windows, trace = measure_windows(
            CsvRecorder(choice.csv, loads), work, seconds, loads=loads, pattern=True, tell=tell
        )
    elif choice.meter is not None:
        with Sampler(choice.meter) as sampler:
            windows, trace = measure_windows(sampler, work, seconds, loads=loads, tell=tell)
    else:
        raise MeterError(f"There is no meter: {choice.reason}.")
    return Recorded(tuple(windows), trace)


def _rest(recorder: Recorder, seconds: float, rest: Callable[[float], None]) -> tuple[float, float]:
    start = recorder.mark()
    rest(seconds)
    return start, recorder.mark()


def _run_pattern(
    recorder: Recorder, load: Load, loads: list[tuple[float, float]], rest: Callable[[float], None]
) -> None:
    rest(SYNC_PATTERN_S[0][1])
    for on_s, off_s in SYNC_PATTERN_S:
        start = recorder.mark()
        load(on_s)
        loads.append((start, recorder.mark()))
        rest(off_s)


def check_seconds(seconds: float | None) -> None:
    """Refuse a window without length.

    Raises:
        InputError: It is not above 0.
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(
            f"An energy window of {seconds} s makes no sense. Give seconds above 0, or leave it to the sensor."
        )
