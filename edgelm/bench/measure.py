"""The benchmark: several bundles and runtimes, measured in turns.

Every (bundle, runtime) pair has a process of its own. Only so are its load time (the import of the runtime included) and
its peak memory its own, and a runtime that crashes says which one it was. The processes take turns of a quarter of a
second, in an order drawn anew for each round, so that a clock that falls or a neighbour that wakes up hits all of them.
Only one is at work at a time; the others wait for their next request. After each change of turn one query is not
counted, because the caches were another's. All of them are loaded at once: on a board with little memory, measure fewer
together.
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import edgelm_device_profiles as device_profiles
from edgelm_runtimes.machine import MachineFacts, machine_facts

from edgelm.bench.context import Conditions, ProfileFacts
from edgelm.bench.facts import bundle_facts, installed_versions, profile_facts
from edgelm.bench.protocol import Load, Loaded, Measure, Measured, WarmedUp, WarmUp
from edgelm.bench.run import FORMAT, SCHEMA_VERSION, Run, Settings
from edgelm.bench.summary import join, summarise
from edgelm.bench.target import ProcessTarget, Target
from edgelm.bundle import Artifact, Bundle, open_bundle
from edgelm.errors import InputError
from edgelm.meters.record import not_measured

__all__ = ["Amount", "Progress", "benchmark"]

Progress = Callable[[str, int, int], None]

_TURN_S = 0.25
_WARM_UP_S = 3.0
_WARM_UP_QUERIES = 300
_DEFAULT_S = 3.0
_DEFAULT_QUERIES = 200
_DEFAULT_MOST_S = 30.0
_DEFAULT_MOST_QUERIES = 10_000


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much to measure of each target.

    With `queries`, that many; with `seconds`, that long; with both, whichever is reached first. With neither, 3 s and at
    least 200 queries, which is enough for a p99, but not more than 30 s or 10,000 queries.
    """

    queries: int | None = None
    seconds: float | None = None

    def reached(self, queries: int, seconds: float) -> bool:
        """Return whether that is enough."""
        if self.queries is None and self.seconds is None:
            enough = queries >= _DEFAULT_QUERIES and seconds >= _DEFAULT_S
            return enough or seconds >= _DEFAULT_MOST_S or queries >= _DEFAULT_MOST_QUERIES
        by_count = self.queries is not None and queries >= self.queries
        by_time = self.seconds is not None and seconds >= self.seconds
        return by_count or by_time

    def share(self, queries: int, seconds: float) -> float:
        """Return how much of it that is, from 0 to 1."""
        if self.queries is None and self.seconds is None:
            share = min(queries / _DEFAULT_QUERIES, seconds / _DEFAULT_S)
            return min(1.0, max(share, seconds / _DEFAULT_MOST_S, queries / _DEFAULT_MOST_QUERIES))
        by_count = queries / self.queries if self.queries else 0.0
        by_time = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_count, by_time))

    def most_queries(self, queries: int) -> int:
        """Return how many queries the next turn may have after that many."""
        most = self.queries
        if most is None:
            return _DEFAULT_MOST_QUERIES if self.seconds is None else 1_000_000
        return most - queries


@dataclass
class _Lane:
    """One target while it is measured."""

    bundle: Bundle
    target: Target
    load: Load
    loaded: Loaded | None = None
    warmed_up: WarmedUp | None = None
    turns: list[Measured] = field(default_factory=list)
    queries: int = 0
    seconds: float = 0.0

    def add(self, turn: Measured) -> None:
        self.turns.append(turn)
        self.queries += len(turn.samples.latency_s)
        self.seconds += sum(turn.samples.latency_s)


def benchmark(
    paths: Sequence[str | Path] | str | Path,
    *,
    runtime: str | Sequence[str] | None = None,
    profile: str | None = None,
    threads: int | None = None,
    queries: int | None = None,
    seconds: float | None = None,
    deadline_s: float | None = None,
    texts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Run]:
    """Measure bundles on this machine, each in each runtime, in turns, and return a run of each pair.

    Args:
        paths: One bundle or several.
        runtime: One runtime or several; None takes the first of each bundle that is installed.
        profile: The device that the numbers are wanted for. None takes the one that this machine is, if any. A run on
            another machine says so.
        threads: Of the runtime; None lets edgelm choose.
        queries: Stop after so many of each.
        seconds: Stop after so long of each.
        deadline_s: What one query may take; the runs tell the share that kept to it.
        texts: The inputs, cycled through; None takes the golden inputs of each bundle.
        progress: Called with a step, how much of it is done, and how much there is.

    Returns:
        In the order of `paths`, then of the runtimes. Ctrl-C ends the measurement: what was measured so far is returned,
        marked as interrupted, and a bundle without a single query is left out.

    Raises:
        InputError: A number is not above 0, or the texts do not fit a bundle.
        BundleError: A bundle cannot be opened.
        ProfileError: There is no such profile.
        RuntimeUnavailableError: A runtime is not installed, or refuses a bundle.
        ExecutionError: A runtime failed or crashed.
        KeyboardInterrupt: Ctrl-C, before anything was measured.
    """
    _check(queries=queries, seconds=seconds, deadline_s=deadline_s, threads=threads, texts=texts)
    amount = Amount(queries=queries, seconds=seconds)
    tell = progress or _silent
    wanted = None if profile is None else device_profiles.load(profile)
    machine = machine_facts()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    detection = device_profiles.detect()
    if wanted is None and detection.profile is not None:
        wanted = device_profiles.load(detection.profile)
    facts = None if wanted is None else profile_facts(wanted, detection, machine)
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    runtimes: Sequence[str | None] = [runtime] if runtime is None or isinstance(runtime, str) else runtime
    if not files:
        raise InputError("There is no bundle to measure: name at least one.")
    with contextlib.ExitStack() as stack:
        bundles = [(path, stack.enter_context(open_bundle(path))) for path in files]
        pairs = [(path, bundle, name) for path, bundle in bundles for name in runtimes or (None,)]
        lanes = [_open_lane(stack, Path(path), bundle, name, threads, texts) for path, bundle, name in pairs]
        interrupted = _measure(lanes, amount, tell)
        after = Conditions.of(machine_facts())
        asked = _Asked(secrets.token_hex(8), started, threads, amount, deadline_s, texts is not None)
        return [_run(lane, asked, len(lanes) - 1, machine, after, facts, interrupted) for lane in lanes if lane.turns]


@dataclass(frozen=True)
class _Asked:
    session: str
    started: str
    threads: int | None
    amount: Amount
    deadline_s: float | None
    texts_given: bool


def _open_lane(
    stack: contextlib.ExitStack,
    path: Path,
    bundle: Bundle,
    runtime: str | None,
    threads: int | None,
    texts: Sequence[str] | None,
) -> _Lane:
    load = Load(
        path=str(path),
        runtime=runtime,
        threads=threads,
        texts=_inputs(bundle, texts),
        golden=str(bundle.path(bundle.manifest.golden)),
    )
    name = bundle.manifest.name if runtime is None else f"{bundle.manifest.name} in {runtime}"
    target = ProcessTarget(name)
    stack.callback(target.close)
    return _Lane(bundle, target, load)


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


def _measure(lanes: Sequence[_Lane], amount: Amount, tell: Progress) -> bool:
    """Load, warm up and measure; return whether Ctrl-C ended it early."""
    try:
        for index, lane in enumerate(lanes):
            tell("load", index, len(lanes))
            lane.loaded = lane.target.load(lane.load)
        tell("load", len(lanes), len(lanes))
        for index, lane in enumerate(lanes):
            tell("warm up", index, len(lanes))
            lane.warmed_up = lane.target.warm_up(WarmUp(seconds=_WARM_UP_S, queries=_WARM_UP_QUERIES))
        tell("warm up", len(lanes), len(lanes))
        for lane in _turns(lanes, amount, random.Random()):  # noqa: S311 - the order is no secret
            lane.add(lane.target.measure(_turn(lane, amount, settle=len(lanes) > 1)))
            tell(
                "measure", sum(int(100 * amount.share(each.queries, each.seconds)) for each in lanes), 100 * len(lanes)
            )
    except KeyboardInterrupt:
        if not any(lane.turns for lane in lanes):
            raise
        return True
    return False


def _turns(lanes: Sequence[_Lane], amount: Amount, generator: random.Random) -> Iterator[_Lane]:
    """Give the lane whose turn it is, round by round, until each has enough."""
    while waiting := [lane for lane in lanes if not lane.turns or not amount.reached(lane.queries, lane.seconds)]:
        generator.shuffle(waiting)
        yield from waiting


def _turn(lane: _Lane, amount: Amount, *, settle: bool) -> Measure:
    left = _TURN_S if amount.seconds is None else min(_TURN_S, max(0.0, amount.seconds - lane.seconds))
    return Measure(first=lane.queries, seconds=left, queries=amount.most_queries(lane.queries), settle=settle)


def _run(
    lane: _Lane,
    asked: _Asked,
    others: int,
    machine: MachineFacts,
    after: Conditions,
    profile: ProfileFacts | None,
    interrupted: bool,
) -> Run:
    if lane.loaded is None or lane.warmed_up is None:
        raise ValueError("a lane has turns and was not loaded")
    samples = join([turn.samples for turn in lane.turns])
    return Run(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        id=secrets.token_hex(8),
        started=asked.started,
        session=asked.session,
        evidence="executed" if machine.emulated_on else "measured",
        evidence_reason="of the kernel's architecture",
        stopped="Ctrl-C" if interrupted and not asked.amount.reached(lane.queries, lane.seconds) else None,
        bundle=bundle_facts(lane.bundle, _artifact(lane.bundle, lane.loaded.artifact_file)),
        runtime=lane.loaded.facts,
        machine=machine,
        profile=profile,
        before=Conditions.of(machine),
        after=after,
        settings=Settings(
            mode="quick",
            threads=asked.threads,
            queries=asked.amount.queries,
            seconds=asked.amount.seconds,
            deadline_s=asked.deadline_s,
            inputs="given" if asked.texts_given else "golden",
            input_count=lane.loaded.input_count,
            truncated_inputs=len({index for turn in lane.turns for index in turn.truncated}),
            warm_up_queries=lane.warmed_up.queries,
            warm_up_settled=lane.warmed_up.settled,
            alternated_with=others,
            order_seed=None,
            resumed=0,
        ),
        results=summarise(
            samples,
            loaded=lane.loaded,
            peak_memory_bytes=lane.turns[-1].peak_memory_bytes,
            deadline_s=asked.deadline_s,
        ),
        energy=not_measured("no meter was asked for"),
        modelled_energy=None,
        background=None,
        timeline=(),
        sustained=None,
        realtime=None,
        mlperf=None,
        comparisons=(),
        packages=installed_versions(),
        samples=samples,
    )


def _artifact(bundle: Bundle, file: str) -> Artifact:
    return next(artifact for artifact in bundle.manifest.artifacts if artifact.file == file)


def _check(
    *,
    queries: int | None,
    seconds: float | None,
    deadline_s: float | None,
    threads: int | None,
    texts: Sequence[str] | None,
) -> None:
    numbers = {"queries": queries, "seconds": seconds, "deadline_s": deadline_s, "threads": threads}
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}, and must be a number above 0.")
    if isinstance(texts, str) or (texts is not None and not texts):
        raise InputError("There is no text to measure with: give a list of at least one.")


def _silent(step: str, done: int, total: int) -> None:
    """Show nothing."""
