"""A lane: one bundle in one runtime while it is measured, in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgelm.bench.findings import Arrivals, Mode
from edgelm.bench.modes import Amount
from edgelm.bench.protocol import Load, Loaded, Measured, WarmedUp
from edgelm.bench.run import Run, Samples
from edgelm.bench.target import ProcessTarget, Target
from edgelm.bundle import Bundle
from edgelm.errors import ExecutionError, InputError
from edgelm.meters.record import EnergyRecord

__all__ = ["Asked", "Lane", "adopt", "open_lane"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How all lanes of a session are measured. Attributes are those of `edgelm.bench.Run` and of its settings.

    Attributes:
        session: Of all of them.
        started: When.
        mode: How.
        amount: How much.
        threads: Of the runtime.
        deadline_s: What a query may take.
        rate_per_s: Queries that arrive; None where each follows the one before.
        arrivals: How they do.
        texts_given: Whether the user gave the inputs.
        seed: Of the order of turns and the arrivals.
    """

    session: str
    started: str
    mode: Mode
    amount: Amount
    threads: int | None
    deadline_s: float | None
    rate_per_s: float | None
    arrivals: Arrivals
    texts_given: bool
    seed: int


@dataclass
class Lane:
    """One bundle in one runtime.

    Attributes:
        bundle: Open.
        target: Its process.
        load: How it is opened there.
        loaded: What it said when it was.
        warmed_up: And when it was warm.
        turns: What it measured, with its rounds and times filled in.
        queries: In all turns.
        seconds: Of their latencies.
        spun: Queries that were not kept.
        arrived: Queries that came, where they come when they like.
        stopped: Why it ended early; None where it did not.
        energy: As measured; None until it was.
        energy_per_window_j: For one inference, of each window.
        earlier: The run that this one takes up again.
        failure: Why its process cannot be asked any more.
    """

    bundle: Bundle
    target: Target
    load: Load
    loaded: Loaded | None = None
    warmed_up: WarmedUp | None = None
    turns: list[Measured] = field(default_factory=list)
    queries: int = 0
    seconds: float = 0.0
    spun: int = 0
    arrived: int = 0
    stopped: str | None = None
    energy: EnergyRecord | None = None
    energy_per_window_j: tuple[float, ...] = ()
    earlier: Run | None = None
    failure: ExecutionError | None = None

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self.failure is None

    @property
    def behind_s(self) -> float:
        """The time on the clock of the run that it had before it was taken up again."""
        earlier = None if self.earlier is None else self.earlier.samples
        if earlier is None or not earlier.at_s:
            return 0.0
        return earlier.at_s[-1] + earlier.latency_s[-1]

    def take(self, turn: Callable[[], Measured], *, origin_s: float, block: int | None) -> int:
        """Let it have a turn, and keep it; return how many queries that had.

        A process that dies, or a runtime that fails, ends this lane alone: what it measured so far is kept.

        Args:
            turn: Asks the process.
            origin_s: When the measurement began, by `time.perf_counter`.
            block: The round; None where turns have none in common.
        """
        try:
            told = turn()
        except ExecutionError as error:
            self.failure, self.stopped = error, str(error)
            return 0
        count = len(told.samples.latency_s)
        if count:
            self.add(replace(told, samples=_placed(told.samples, self.behind_s - origin_s, block)))
        return count

    def add(self, turn: Measured) -> None:
        """Keep a turn."""
        self.turns.append(turn)
        self.queries += len(turn.samples.latency_s)
        self.seconds += sum(turn.samples.latency_s)

    def spin(self, turn: Callable[[], int]) -> int:
        """Let it run for a time without keeping anything; return how many queries that had, 0 where it failed."""
        try:
            count = turn()
        except ExecutionError as error:
            self.failure, self.stopped = error, str(error)
            return 0
        self.spun += count
        return count


def open_lane(
    stack: contextlib.ExitStack,
    path: Path,
    bundle: Bundle,
    runtime: str | None,
    threads: int | None,
    texts: Sequence[str] | None,
    start: Callable[[str], Target] = ProcessTarget,
) -> Lane:
    """Start the process of a lane; it opens nothing yet, and ends with `stack`.

    Raises:
        InputError: The texts do not fit the bundle.
    """
    load = Load(
        path=str(path),
        runtime=runtime,
        threads=threads,
        texts=_inputs(bundle, texts),
        golden=str(bundle.path(bundle.manifest.golden)),
    )
    name = bundle.manifest.name if runtime is None else f"{bundle.manifest.name} in {runtime}"
    target = start(name)
    stack.callback(target.close)
    return Lane(bundle, target, load)


def adopt(lane: Lane, earlier: Run) -> None:
    """Let a lane go on where an earlier run stopped."""
    lane.earlier = earlier
    lane.add(
        Measured(samples=earlier.samples, truncated=(), peak_memory_bytes=earlier.results.peak_memory_bytes),
    )


def _placed(samples: Samples, shift_s: float, block: int | None) -> Samples:
    """Return samples with their round, and times from the beginning of the measurement."""
    return replace(
        samples,
        block=None if block is None else (block,) * len(samples.latency_s),
        at_s=None if samples.at_s is None else tuple(round(at + shift_s, 6) for at in samples.at_s),
    )


def _inputs(bundle: Bundle, texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the texts to ask; None where the golden arrays are the inputs."""
    manifest = bundle.manifest
    takes_texts = manifest.tokenizer is not None and manifest.task != "raw"
    if texts is not None:
        if not takes_texts:
            raise InputError(
                f"{manifest.name} takes arrays, not texts: leave the texts out to measure its golden inputs."
            )
        return tuple(texts)
    golden = tuple(case.text for case in bundle.golden() if case.text is not None) if takes_texts else ()
    return golden or None
