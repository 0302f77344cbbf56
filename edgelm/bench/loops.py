"""The loops of the modes: who has the next turn, until each has enough."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from edgelm.bench.lanes import Asked, Lane
from edgelm.bench.protocol import Attend, Measure, Spin
from edgelm.bench.realtime import OVERRUN, arrival_times, chunks
from edgelm.bench.sustained import SteadyRule, is_steady
from edgelm.bench.timeline import Work, timeline
from edgelm.bench.watch import Snapshot

__all__ = [
    "REALTIME_S",
    "STEADY_NOT_BEFORE_S",
    "SUSTAINED_S",
    "Progress",
    "Tick",
    "alone",
    "alternate",
    "attend",
    "sustain",
    "work_of",
]

Progress = Callable[[str, int, int], None]
Tick = Callable[[], None]
"""Called after each round: the place to write down what there is so far."""

REALTIME_S = 30.0
SUSTAINED_S = 1900.0
"""The longest, unless asked for: half an hour, and what its checkpoint needs."""

STEADY_NOT_BEFORE_S = 610.0
_LONE_TURN_S = 5.0
_CHUNK_S = 5.0
_PERIOD_S = 10.0
_KEPT_S = 2.0
_KEPT_QUERIES = 1000
# What a request needs to reach the process, so that the first query does not wait for it.
_LEAD_NS = 20_000_000


def alternate(lanes: Sequence[Lane], asked: Asked, origin_s: float, tell: Progress, tick: Tick) -> None:
    """Give each lane a turn in every round, in an order drawn anew, until each has enough.

    In one round all answer the same inputs, as many as they get to: what a comparison pairs.
    """
    generator = random.Random(asked.seed)  # noqa: S311 - the order is no secret
    amount, several = asked.amount, len(lanes) > 1
    block = 1 + max((max(turn.samples.block or (-1,)) for lane in lanes for turn in lane.turns), default=-1)
    first = max((lane.queries for lane in lanes), default=0)
    while waiting := [
        lane for lane in lanes if lane.alive and not (lane.turns and amount.reached(lane.queries, lane.seconds))
    ]:
        generator.shuffle(waiting)
        answered = 0
        for lane in waiting:
            request = Measure(
                first=first,
                seconds=amount.turn_s(lane.seconds, alone=not several),
                queries=amount.turn_queries(lane.queries, alone=not several),
                settle=several,
            )
            answered = max(answered, lane.take(partial(lane.target.measure, request), origin_s=origin_s, block=block))
            _tell(lanes, asked, tell)
        first += answered
        block += 1
        tick()


def alone(lanes: Sequence[Lane], asked: Asked, origin_s: float, tell: Progress, tick: Tick) -> None:
    """Measure each lane to its end before the next begins."""
    for lane in lanes:
        while lane.alive and not (lane.turns and asked.amount.reached(lane.queries, lane.seconds)):
            seconds = _LONE_TURN_S if asked.amount.seconds is None else asked.amount.seconds - lane.seconds
            request = Measure(
                first=lane.queries,
                seconds=min(_LONE_TURN_S, max(0.0, seconds)),
                queries=asked.amount.turn_queries(lane.queries, alone=True),
                settle=False,
            )
            lane.take(partial(lane.target.measure, request), origin_s=origin_s, block=None)
            _tell(lanes, asked, tell)
            tick()


def attend(lanes: Sequence[Lane], asked: Asked, origin_s: float, tell: Progress, tick: Tick) -> None:
    """Let each lane answer the same arrivals, one lane after the other.

    They are sent in pieces, with times that count from one moment: what waits at the end of a piece is late in the next.
    """
    seconds = asked.amount.seconds or REALTIME_S
    times = arrival_times(asked.rate_per_s or 0.0, seconds, asked.arrivals, asked.seed)
    times = times if asked.amount.queries is None else times[: asked.amount.queries]
    for index, lane in enumerate(lanes):
        origin_ns = time.perf_counter_ns() + _LEAD_NS
        for piece in chunks(times, _CHUNK_S):
            request = Attend(
                origin_ns=origin_ns, arrivals_s=piece, stop_s=OVERRUN * max(seconds, times[-1]), first=lane.queries
            )
            served = lane.take(partial(lane.target.attend, request), origin_s=origin_s, block=None)
            if lane.alive:
                lane.arrived += len(piece)
            tell("measure", int(100 * (index + lane.arrived / len(times))), 100 * len(lanes))
            tick()
            if served < len(piece):  # it failed, or its queue grew beyond the end: the rest came and was not served
                lane.arrived = len(times) if lane.alive else lane.arrived
                break


def sustain(
    lane: Lane,
    asked: Asked,
    origin_s: float,
    snapshots: Callable[[], Sequence[Snapshot]],
    rule: SteadyRule,
    tell: Progress,
    tick: Tick,
) -> None:
    """Keep a lane at work until it is steady, but for its checkpoints, or for as long as was asked for.

    Of each ten seconds the queries of the first two are kept, and of these a thousand; the others heat alike.
    """
    longest = asked.amount.seconds or SUSTAINED_S
    period_s = min(_PERIOD_S, longest / 10)
    while lane.alive and (now := time.perf_counter() - origin_s) < longest:
        end = min(longest, now + period_s)
        first = lane.queries + lane.spun
        kept = Measure(first=first, seconds=min(_KEPT_S, end - now), queries=_KEPT_QUERIES, settle=False)
        lane.take(partial(lane.target.measure, kept), origin_s=origin_s, block=None)
        left = end - (time.perf_counter() - origin_s)
        if lane.alive and left > 0:
            lane.spin(partial(_spun, lane, left))
        now = time.perf_counter() - origin_s
        tell("measure", int(1000 * min(1.0, now / longest)), 1000)
        tick()
        if asked.amount.seconds is None and now >= STEADY_NOT_BEFORE_S:
            points = timeline(snapshots(), work_of(lane), origin_s)
            if is_steady(points, rule):
                return


def work_of(lane: Lane) -> list[Work]:
    """Return when each query that was kept began, since the measurement did, and how long it took."""
    return [
        (at, took, None)
        for turn in lane.turns
        for at, took in zip(turn.samples.at_s or (), turn.samples.latency_s, strict=False)
    ]


def _spun(lane: Lane, seconds: float) -> int:
    return lane.target.spin(Spin(first=lane.queries + lane.spun, seconds=seconds)).queries


def _tell(lanes: Sequence[Lane], asked: Asked, tell: Progress) -> None:
    share = sum(int(100 * asked.amount.share(lane.queries, lane.seconds)) if lane.alive else 100 for lane in lanes)
    tell("measure", share, 100 * len(lanes))
