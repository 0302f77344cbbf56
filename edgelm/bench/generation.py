"""The benchmark of language models: time to first token, prefill and decode tokens a second, at several depths of the cache.

As in `edgelm.bench.measure`, every (bundle, runtime) pair has a process of its own, and they take turns: here of one
repetition (a prompt and its answer), in an order drawn anew for each round.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from edgelm_runtimes.machine import machine_facts

from edgelm.bench.assemble import Surroundings
from edgelm.bench.context import Conditions
from edgelm.bench.energy import check_seconds
from edgelm.bench.findings import Mode
from edgelm.bench.generation_energy import measure_model_energy
from edgelm.bench.generation_lanes import (
    GenerationAsked,
    ModelLane,
    Repetition,
    compared_models,
    model_run,
    open_model_lane,
    work_of_models,
)
from edgelm.bench.generation_run import GenerationRun
from edgelm.bench.generation_worker import Generate, Generated, Opened
from edgelm.bench.loops import STEADY_NOT_BEFORE_S, SUSTAINED_S, Progress, Tick
from edgelm.bench.measure import choose, place_of
from edgelm.bench.meter_choice import MeterChoice
from edgelm.bench.modes import check_mode
from edgelm.bench.resume import bundle_digest, check_resumable
from edgelm.bench.session import CTRL_C, RUNNING, Place, ticker
from edgelm.bench.sustained import SteadyRule, is_steady
from edgelm.bench.timeline import timeline
from edgelm.bench.watch import Watcher
from edgelm.bundle import open_bundle
from edgelm.errors import ExecutionError, InputError, OutputError
from edgelm.meters import Meter

__all__ = ["REPETITIONS", "benchmark_generation"]

REPETITIONS: dict[Mode, int] = {"quick": 5, "standard": 10, "sustained": 1}
"""Of each mode; in a sustained run it is the least."""

_CONDITIONS_S = 5.0


def benchmark_generation(
    paths: Sequence[str | Path] | str | Path,
    *,
    mode: str = "standard",
    runtime: str | Sequence[str] | None = None,
    profile: str | None = None,
    threads: int | None = None,
    prefill_tokens: int = 512,
    decode_tokens: int = 128,
    depths: Sequence[int] = (0,),
    repetitions: int | None = None,
    seconds: float | None = None,
    meter: str | Meter | None = None,
    energy_seconds: float | None = None,
    model_energy: bool = False,
    resume: Sequence[GenerationRun] = (),
    seed: int | None = None,
    progress: Progress = lambda step, done, total: None,
    checkpoint: Callable[[list[GenerationRun]], None] | None = None,
) -> list[GenerationRun]:
    """Measure language models on this machine, each in each runtime and at each depth, in turns.

    A first repetition of each is not counted: it warms caches and clocks up. (A sustained run counts it.)

    Args:
        paths: One bundle or several.
        mode: ``quick``, ``standard`` or ``sustained``.
        runtime: One runtime or several; None takes the first of each bundle that is installed.
        profile: The device that the numbers are wanted for, as of `edgelm.bench.benchmark`.
        threads: Of the runtime; None lets edgelm choose.
        prefill_tokens: Of the prompt.
        decode_tokens: Of the answer, at least 2.
        depths: Positions that the cache holds before the prompt.
        repetitions: Of each; None is 5 in quick mode and 10 in standard.
        seconds: Of a sustained run; None goes on until it is steady.
        meter: As of `edgelm.bench.benchmark`.
        energy_seconds: As of `edgelm.bench.benchmark`.
        model_energy: As of `edgelm.bench.benchmark`.
        resume: As of `edgelm.bench.benchmark`.
        seed: As of `edgelm.bench.benchmark`.
        progress: Called with a step, how much of it is done, and how much there is.
        checkpoint: As of `edgelm.bench.benchmark`.

    Returns:
        In the order of `paths`, the runtimes, and the depths. As of `edgelm.bench.benchmark`, what was measured when
        something ended the measurement is kept.

    Raises:
        InputError: A number makes no sense, or more tokens are asked for than a context holds.
        BundleError: A bundle cannot be opened.
        MeterError: The meter that was named cannot be read.
        RuntimeUnavailableError: A runtime is not installed, or refuses a bundle.
        ExecutionError: A runtime failed or crashed before anything was measured.
        KeyboardInterrupt: Ctrl-C, before anything was measured.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    names: Sequence[str | None] = [runtime] if runtime is None or isinstance(runtime, str) else runtime
    found = check_mode(mode, generates=True)
    asked = GenerationAsked(
        session=secrets.token_hex(8),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        mode=found,
        threads=threads,
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        depths=tuple(depths),
        repetitions=REPETITIONS[found] if repetitions is None else repetitions,
        seconds=seconds,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    asked.check()
    if found == "sustained" and len(files) * max(1, len(names or ())) * len(asked.depths) > 1:
        raise InputError("A sustained run heats the device: measure one bundle in one runtime at one depth.")
    check_seconds(energy_seconds)
    place = place_of(profile)
    check_resumable(resume, found, place.machine)
    choice = choose(meter, found)
    with contextlib.ExitStack() as stack:
        bundles = [(path, stack.enter_context(open_bundle(path))) for path in files]
        pairs = [(path, bundle, name) for path, bundle in bundles for name in names or (None,)]
        lanes = [open_model_lane(stack, Path(path), bundle, name, threads) for path, bundle, name in pairs]
        session = _Session(lanes, asked, place, choice, progress)
        session.load(resume)
        session.measure(checkpoint)
        if session.stopped is None:
            session.measure_energy(energy_seconds)
        return compared_models(session.runs(model=model_energy, stopped=session.stopped))


class _Session:
    """Language models that are measured together."""

    def __init__(
        self, lanes: list[ModelLane], asked: GenerationAsked, place: Place, choice: MeterChoice, tell: Progress
    ) -> None:
        self._lanes, self._asked, self._place, self._choice, self._tell = lanes, asked, place, choice, tell
        self._rule = SteadyRule()
        self._origin_s = time.perf_counter()
        self._watcher = Watcher([lane.target.pid for lane in lanes], conditions_s=self._conditions_s)
        self._no_energy = choice.reason or "it ended before its energy was measured"
        self.stopped: str | None = None

    @property
    def _conditions_s(self) -> float:
        return _CONDITIONS_S if self._asked.seconds is None else min(_CONDITIONS_S, self._asked.seconds / 20)

    def load(self, resume: Sequence[GenerationRun]) -> None:
        asked = self._asked
        for index, lane in enumerate(self._lanes):
            self._tell("load", index, len(self._lanes))
            lane.opened = lane.target.ask(lane.request, Opened)
            if asked.positions > lane.opened.context_length:
                raise InputError(
                    f"{lane.bundle.manifest.name} holds {lane.opened.context_length} positions, and {asked.positions} "
                    "are needed: ask for fewer tokens or less depth, or convert it with a longer --sequence-length."
                )
        self._tell("load", len(self._lanes), len(self._lanes))
        for run in resume:
            lane_or_none = next((lane for lane in self._lanes if _continues(lane, asked, run)), None)
            if lane_or_none is None:
                raise InputError(
                    f"The run to resume is of {run.bundle.name} in {run.runtime.runtime} at depth {run.settings.depth}, with "
                    "other amounts or not named at all. Name the same bundles, runtimes, threads and amounts again."
                )
            lane_or_none.adopt(run)

    def measure(self, checkpoint: Callable[[list[GenerationRun]], None] | None) -> None:
        """Measure, until each has enough or something ends it.

        Raises:
            KeyboardInterrupt: Ctrl-C, and there is nothing yet.
            ExecutionError: The lanes failed, and there is nothing yet.
        """
        tick = ticker(lambda: None if checkpoint is None else checkpoint(self.runs(model=False, stopped=RUNNING)))
        with self._watcher:
            self._origin_s = time.perf_counter()
            try:
                if self._asked.mode == "sustained":
                    self._sustain(tick)
                else:
                    self._alternate(tick)
            except KeyboardInterrupt:
                if not self._begun:
                    raise
                self.stopped = CTRL_C
            except OutputError as error:
                self.stopped = str(error)
        if not self._begun:
            raise next(
                (lane.failure for lane in self._lanes if lane.failure is not None),
                ExecutionError(f"Nothing was measured: {self.stopped}"),
            )

    def measure_energy(self, seconds: float | None) -> None:
        if self._choice.reason is not None:
            return
        try:
            measure_model_energy(self._lanes, self._asked, self._choice, seconds, self._tell)
        except KeyboardInterrupt:
            self._no_energy = "Ctrl-C came before its energy was measured"

    def runs(self, *, model: bool, stopped: str | None) -> list[GenerationRun]:
        work = work_of_models(self._lanes[0]) if len(self._lanes) == 1 else []
        around = Surroundings(
            machine=self._place.machine,
            profile=self._place.facts,
            after=Conditions.of(machine_facts()),
            background=self._watcher.background(),
            timeline=timeline(self._watcher.snapshots(), work, self._origin_s),
        )
        return [
            model_run(
                lane,
                depth,
                self._asked,
                around,
                others=len(self._lanes) * len(self._asked.depths) - 1,
                stopped=self._why_stopped(lane, depth, stopped),
                model=self._place.profile if model else None,
                no_energy=self._no_energy,
                rule=self._rule,
            )
            for lane in self._lanes
            for depth in self._asked.depths
            if lane.done.get(depth)
        ]

    @property
    def _begun(self) -> bool:
        return any(done for lane in self._lanes for done in lane.done.values())

    def _why_stopped(self, lane: ModelLane, depth: int, stopped: str | None) -> str | None:
        if self._asked.mode != "sustained" and len(lane.done[depth]) >= self._asked.repetitions:
            return None
        return stopped if lane.failure is None else str(lane.failure)

    def _alternate(self, tick: Tick) -> None:
        """Let each lane repeat at each depth, in an order drawn anew for each round; the first round is not counted."""
        generator = random.Random(self._asked.seed)  # noqa: S311 - the order is no secret
        turns = [(lane, depth) for lane in self._lanes for depth in self._asked.depths]
        begin = max((len(lane.done.get(depth, [])) for lane, depth in turns), default=0)
        rounds = self._asked.repetitions + 1 - begin
        for number in range(max(0, rounds)):
            generator.shuffle(turns)
            for done, (lane, depth) in enumerate(turns, number * len(turns) + 1):
                if len(lane.done.get(depth, [])) < self._asked.repetitions:
                    self._repeat(lane, depth, None if number == 0 else begin + number - 1)
                self._tell("measure", done, rounds * len(turns))
            tick()

    def _sustain(self, tick: Tick) -> None:
        (lane,), (depth,) = self._lanes, self._asked.depths
        longest = self._asked.seconds or SUSTAINED_S
        block = 0
        while lane.failure is None and (now := time.perf_counter() - self._origin_s) < longest:
            self._repeat(lane, depth, block)
            block += 1
            self._tell("measure", int(1000 * min(1.0, now / longest)), 1000)
            tick()
            if self._asked.seconds is None and now >= STEADY_NOT_BEFORE_S:
                points = timeline(self._watcher.snapshots(), work_of_models(lane), self._origin_s)
                if is_steady(points, self._rule):
                    return

    def _repeat(self, lane: ModelLane, depth: int, block: int | None) -> None:
        """Let a lane repeat once, and keep it unless it is the warm-up; one that fails ends that lane alone."""
        if lane.failure is not None:
            return
        request = Generate(
            depth=depth, prefill_tokens=self._asked.prefill_tokens, decode_tokens=self._asked.decode_tokens
        )
        try:
            told = lane.target.ask(request, Generated)
        except ExecutionError as error:
            lane.failure = error
            return
        if block is not None:
            kept = Repetition(block, told.at_s - self._origin_s, told)
            lane.done.setdefault(depth, []).append(kept)


def _continues(lane: ModelLane, asked: GenerationAsked, run: GenerationRun) -> bool:
    facts = None if lane.opened is None else lane.opened.facts
    settings = run.settings
    return (
        facts is not None
        and bundle_digest(lane.bundle) == run.bundle.manifest_sha256
        and (facts.runtime, facts.threads) == (run.runtime.runtime, run.runtime.threads)
        and settings.depth in asked.depths
        and (settings.prefill_tokens, settings.decode_tokens) == (asked.prefill_tokens, asked.decode_tokens)
    )
