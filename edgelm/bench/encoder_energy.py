"""The energy of lanes that answer queries: each runs back to back in a window of its own."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.bench.energy import Recorded, record, window_s
from edgelm.bench.lanes import Lane
from edgelm.bench.loops import Progress
from edgelm.bench.meter_choice import MeterChoice
from edgelm.bench.protocol import Spin
from edgelm.errors import ExecutionError, MeterError
from edgelm.meters import measured, not_measured

__all__ = ["keep_energy", "measure_energy"]


def measure_energy(
    lanes: Sequence[Lane], choice: MeterChoice, asked_s: float | None, *, repeats: int, tell: Progress
) -> None:
    """Measure the energy of each lane that is alive, and keep it there; a meter that fails is in its record.

    Args:
        lanes: Warm.
        choice: The meter.
        asked_s: Of each window; None lets the sensor decide.
        repeats: Windows of each.
        tell: Told how far it is.
    """
    alive = [lane for lane in lanes if lane.alive]
    if not alive:
        return
    failures: dict[int, str] = {}

    def load(lane: Lane, seconds: float) -> int:
        try:
            return lane.target.spin(Spin(first=lane.queries, seconds=seconds)).queries
        except ExecutionError as error:  # its latencies stand; only its energy is lost
            failures[id(lane)] = str(error)
            return 0

    work = [lambda seconds, lane=lane: load(lane, seconds) for _ in range(repeats) for lane in alive]
    try:
        recorded = record(choice, work, window_s(choice, asked_s), lambda done, total: tell("energy", done, total))
    except MeterError as error:
        for lane in alive:
            lane.energy = not_measured(str(error))
        return
    for index, lane in enumerate(alive):
        if id(lane) in failures:
            lane.energy = not_measured(failures[id(lane)])
        else:
            keep_energy(lane, recorded, slice(index, None, len(alive)))


def keep_energy(lane: Lane, recorded: Recorded, of_lane: slice) -> None:
    """Keep the windows of a lane as its energy."""
    windows = recorded.windows[of_lane]
    lane.energy = measured(
        recorded.facts,
        [window.energy for window in windows],
        sum(window.count for window in windows),
        events=recorded.events,
    )
    lane.energy_per_window_j = tuple(window.energy.joules / window.count for window in windows)
