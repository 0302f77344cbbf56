"""A session: its lanes from their loading to their runs, whatever ends it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edgelm_device_profiles import DeviceProfile
from edgelm_runtimes.machine import MachineFacts, machine_facts

from edgelm.bench.assemble import Surroundings, compared, run_of
from edgelm.bench.context import Conditions, ProfileFacts
from edgelm.bench.encoder_energy import keep_energy, measure_energy
from edgelm.bench.energy import record, window_s
from edgelm.bench.lanes import Asked, Lane, adopt
from edgelm.bench.loops import Progress, Tick, alone, alternate, attend, sustain, work_of
from edgelm.bench.meter_choice import MeterChoice
from edgelm.bench.mlperf import ENERGY_WINDOWS
from edgelm.bench.protocol import WarmUp
from edgelm.bench.resume import earlier_of
from edgelm.bench.run import Run
from edgelm.bench.sustained import SteadyRule
from edgelm.bench.timeline import timeline
from edgelm.bench.watch import Snapshot, Watcher
from edgelm.errors import ExecutionError, MeterError, OutputError
from edgelm.meters import Trace, not_measured

__all__ = ["CTRL_C", "RUNNING", "Checkpoint", "Place", "Session", "ticker"]

CTRL_C = "Ctrl-C"
RUNNING = "it was still running when this was written"

Checkpoint = Callable[[list[Run]], None]

_CHECKPOINT_S = 60.0
_WARM_UP_S = 3.0
_WARM_UP_QUERIES = 300
_CONDITIONS_S = 5.0


@dataclass(frozen=True)
class Place:
    """The machine, and the device that the numbers are wanted for; `profile` is that device, None without one."""

    machine: MachineFacts
    facts: ProfileFacts | None
    profile: DeviceProfile | None


class Session:
    """Lanes that are measured together.

    Args:
        lanes: Not loaded yet.
        asked: How they are measured.
        place: Where.
        choice: The meter.
        energy_seconds: Of each energy window; None lets the sensor decide.
        model: The profile that a modelled energy is made of; None where nobody asked for one.
        tell: Told how far it is.
        rule: What counts as steady.
    """

    def __init__(
        self,
        lanes: list[Lane],
        asked: Asked,
        place: Place,
        choice: MeterChoice,
        *,
        energy_seconds: float | None,
        model: DeviceProfile | None,
        tell: Progress,
        rule: SteadyRule | None = None,
    ) -> None:
        self._lanes, self._asked, self._place, self._choice = lanes, asked, place, choice
        self._energy_seconds, self._model, self._tell = energy_seconds, model, tell
        self._rule = rule or SteadyRule()
        self._watcher: Watcher | None = None
        self._origin_s = 0.0
        self._trace: Trace | None = None
        self._no_energy = choice.reason or "it ended before its energy was measured"

    def load(self, resume: Sequence[Run]) -> None:
        """Load every lane, let those that are resumed have what they had, and warm all of them up."""
        total = len(self._lanes)
        for index, lane in enumerate(self._lanes):
            self._tell("load", index, total)
            lane.loaded = lane.target.load(lane.load)
        self._tell("load", total, total)
        for lane, earlier in earlier_of(self._lanes, resume):
            adopt(lane, earlier)
        for index, lane in enumerate(self._lanes):
            self._tell("warm up", index, total)
            lane.warmed_up = lane.target.warm_up(WarmUp(seconds=_WARM_UP_S, queries=_WARM_UP_QUERIES))
        self._tell("warm up", total, total)

    def measure(self, checkpoint: Checkpoint | None) -> list[Run]:
        """Measure every lane, and return the runs of those that have a query.

        Raises:
            KeyboardInterrupt: Ctrl-C, and there is none.
            ExecutionError: The lanes failed, and there is none.
        """
        stopped: str | None = None
        with self._watching():
            try:
                self._loop(ticker(lambda: None if checkpoint is None else checkpoint(self._runs(RUNNING))))
            except KeyboardInterrupt:
                if not self._begun:
                    raise
                stopped = CTRL_C
            except OutputError as error:
                stopped = str(error)
        if not self._begun:
            raise next(
                (lane.failure for lane in self._lanes if lane.failure is not None),
                ExecutionError(f"Nothing was measured: {stopped}"),
            )
        if stopped is None and self._asked.mode != "sustained":
            self._measure_energy()
        return compared(self._runs(stopped))

    @property
    def _begun(self) -> bool:
        return any(lane.turns for lane in self._lanes)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        short = self._asked.mode == "sustained" and self._asked.amount.seconds is not None
        every_s = min(_CONDITIONS_S, (self._asked.amount.seconds or math.inf) / 20) if short else _CONDITIONS_S
        pids = [lane.target.pid for lane in self._lanes]
        with Watcher(pids, period_s=min(0.5, every_s), conditions_s=every_s) as self._watcher:
            self._origin_s = time.perf_counter()
            yield

    def _loop(self, tick: Tick) -> None:
        common = self._lanes, self._asked, self._origin_s, self._tell, tick
        match self._asked.mode:
            case "quick" | "standard":
                alternate(*common)
            case "mlperf":
                alone(*common)
            case "realtime":
                attend(*common)
            case "sustained":
                self._sustain(tick)

    def _sustain(self, tick: Tick) -> None:
        """Run the one lane there is; where there is a meter, all of it is one window of energy."""
        (lane,) = self._lanes
        done = False

        def load(_: float) -> int:
            nonlocal done
            self._origin_s = time.perf_counter()
            before = lane.queries + lane.spun
            sustain(lane, self._asked, self._origin_s, self._snapshots, self._rule, self._tell, tick)
            done = True
            return lane.queries + lane.spun - before

        if self._choice.reason is not None:
            load(0.0)
            return
        try:
            recorded = record(self._choice, [load], window_s(self._choice, self._energy_seconds))
            keep_energy(lane, recorded, slice(None))
            self._trace = recorded.trace
        except MeterError as error:
            lane.energy = not_measured(str(error))
            if not done:  # the meter failed before the load began
                load(0.0)

    def _snapshots(self) -> Sequence[Snapshot]:
        return () if self._watcher is None else self._watcher.snapshots()

    def _measure_energy(self) -> None:
        if self._choice.reason is not None:
            return
        repeats = ENERGY_WINDOWS if self._asked.mode == "mlperf" else 1
        try:
            measure_energy(self._lanes, self._choice, self._energy_seconds, repeats=repeats, tell=self._tell)
        except KeyboardInterrupt:
            self._no_energy = "Ctrl-C came before its energy was measured"

    def _runs(self, stopped: str | None) -> list[Run]:
        if self._watcher is None:
            raise ValueError("nothing was measured yet")
        work = work_of(self._lanes[0]) if len(self._lanes) == 1 else []
        around = Surroundings(
            machine=self._place.machine,
            profile=self._place.facts,
            after=Conditions.of(machine_facts()),
            background=self._watcher.background(),
            timeline=timeline(self._watcher.snapshots(), work, self._origin_s, trace=self._trace),
        )
        return [
            run_of(
                lane,
                self._asked,
                around,
                others=len(self._lanes) - 1,
                stopped=None if self._has_enough(lane) else stopped,
                model=self._model,
                no_energy=self._no_energy,
                rule=self._rule,
            )
            for lane in self._lanes
            if lane.turns
        ]

    def _has_enough(self, lane: Lane) -> bool:
        """Whether a lane had all that was asked for when the others were stopped."""
        counted = self._asked.mode in ("quick", "standard", "mlperf")
        return counted and self._asked.amount.reached(lane.queries, lane.seconds)


def ticker(write: Callable[[], None], *, every_s: float = _CHECKPOINT_S) -> Tick:
    """Return a function that calls another one, but not more often than that."""
    due = time.monotonic() + every_s

    def tick() -> None:
        nonlocal due
        if time.monotonic() >= due:
            write()
            due = time.monotonic() + every_s

    return tick
