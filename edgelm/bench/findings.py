"""What a run found beside its latencies: the state of the machine over time, comparisons, steady state, real time.

All of it is plain values, ready for JSON. None means not measured or not known, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Arrivals",
    "Background",
    "Checkpoint",
    "Comparison",
    "Evidence",
    "Mode",
    "RealTime",
    "Spread",
    "StoredSamples",
    "Sustained",
    "TimelinePoint",
]

Mode = Literal["quick", "standard", "sustained", "mlperf", "realtime"]
Evidence = Literal["measured", "executed", "analysed"]
Arrivals = Literal["fixed", "poisson"]


@dataclass(frozen=True, kw_only=True)
class Background:
    """What other processes did while it was measured, in cores: 1.0 is one core's whole time.

    Attributes:
        others_cores_mean: Mean over the measurement, of this user's and of everyone else's processes.
        others_cores_max: Most in one period.
        readings: Periods.
        period_s: Their length, about.
    """

    others_cores_mean: float
    others_cores_max: float
    readings: int
    period_s: float


@dataclass(frozen=True, kw_only=True)
class TimelinePoint:
    """The machine and the model at one moment of a run.

    Attributes:
        at_s: Since the measurement began.
        p50_s: Median latency of the queries since the point before; of a language model, of a token that is generated.
        tokens_per_s: Of a language model, while decoding, likewise.
        clock_hz: Mean of the processors' clocks.
        temperature_c: Of the hottest zone.
        limits: What limits the clock now, as the board names it; None where it does not tell.
        others_cores: What other processes did since the point before, in cores.
        power_w: Of the energy meter.
    """

    at_s: float
    p50_s: float | None
    tokens_per_s: float | None
    clock_hz: float | None
    temperature_c: float | None
    limits: tuple[str, ...] | None
    others_cores: float | None
    power_w: float | None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How fast it was after a while under load.

    Attributes:
        at_s: Since the load began; the figures are of the 10 s and more before, at 0 of those after.
        p50_s: Median latency; of a language model, of a token.
        tokens_per_s: Of a language model, while decoding.
        ratio: `p50_s` to that of the start: 1.25 is a quarter slower.
    """

    at_s: float
    p50_s: float
    tokens_per_s: float | None
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """What became of the speed under a load that goes on.

    Attributes:
        steady: Whether a steady state was reached.
        steady_at_s: When; None where it was not.
        criterion: What counts as steady, in words.
        p50_slope_per_minute: Of the last minutes, as a share of the p50: 0.01 is one percent slower each minute.
        temperature_slope_c_per_minute: Likewise, in degrees; None without a sensor.
        checkpoints: At the start, after 1, 10 and 30 minutes as far as the run went, and at its end.
    """

    steady: bool
    steady_at_s: float | None
    criterion: str
    p50_slope_per_minute: float | None
    temperature_slope_c_per_minute: float | None
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """This run against another one of the same session, from blocks that were measured side by side.

    Attributes:
        with_id: The other run.
        with_name: Its bundle and runtime.
        quantity: What is compared.
        ratio: This one's to the other's; below 1 this one is faster. None with too few blocks.
        low: Lower end of the confidence interval of the ratio; None likewise.
        high: Upper end.
        confidence: Of the interval, such as 0.99: of 100 comparisons of a thing with itself, about one leaves it.
        blocks: Pairs of turns.
        margin: A difference below this share is none that a user feels, nor one that two processes of the same bundle do
            not have; the verdict asks for more.
        verdict: ``faster`` or ``slower`` where the whole interval is beyond the margin; ``no difference`` where the ratio
            cannot be told from 1, or the interval reaches into the margin; ``too few blocks``.
        caveats: Why the two are not alike in more than what is compared.
    """

    with_id: str
    with_name: str
    quantity: Literal["latency", "token latency"]
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    blocks: int
    margin: float
    verdict: Literal["faster", "slower", "no difference", "too few blocks"]
    caveats: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Percentiles of a time; None with too few queries to state one."""

    p50_s: float
    p90_s: float | None
    p99_s: float | None


@dataclass(frozen=True, kw_only=True)
class RealTime:
    """How it kept up with queries that come when they like.

    Attributes:
        rate_per_s: Queries a second that arrived, as asked for.
        arrivals: ``fixed`` (one period apart) or ``poisson`` (independent of each other).
        arrived: Queries.
        served: Those of them that were answered before the run ended; the others count as late.
        hit_rate: Share of the arrived that were answered within the deadline, waiting included; None without one.
        utilisation: Share of the time in which it was at work.
        queue: From a query's arrival to its turn.
        service: From its turn to the answer.
        response: Both together.
    """

    rate_per_s: float
    arrivals: Arrivals
    arrived: int
    served: int
    hit_rate: float | None
    utilisation: float
    queue: Spread
    service: Spread
    response: Spread


@dataclass(frozen=True, kw_only=True)
class StoredSamples:
    """Where the samples of a line of a log are.

    Attributes:
        file: An ``.npz`` with an array for each column, relative to the log's folder.
        sha256: Of the file, in hex.
    """

    file: str
    sha256: str
