"""What the benchmark and the process that it measures say to each other: one line of JSON each way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgelm_runtimes.program import ProgramFacts

from edgelm.bench.run import Samples

__all__ = ["Attend", "Failed", "Load", "Loaded", "Measure", "Measured", "Spin", "Spun", "WarmUp", "WarmedUp"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Open a bundle, and answer one query.

    Attributes:
        path: The bundle.
        runtime: As `edgelm_runtimes.load` takes it.
        threads: As `edgelm_runtimes.load` takes it.
        texts: The inputs; None takes the arrays of `golden`.
        golden: The file of golden vectors.
    """

    path: str
    runtime: str | None
    threads: int | None
    texts: tuple[str, ...] | None
    golden: str
    op: Literal["load"] = "load"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The bundle is open. Attributes are those of `edgelm.bench.Results`, and what runs it."""

    facts: ProgramFacts
    artifact_file: str
    input_count: int
    load_s: float
    first_inference_s: float
    baseline_memory_bytes: int | None
    overhead_s: float


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Answer queries until the p50 settles, or one of the bounds is reached."""

    seconds: float
    queries: int
    op: Literal["warm_up"] = "warm_up"


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """How many queries that took, and whether the p50 settled."""

    queries: int
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Answer queries, one after the other, for a time or a number of them; at least one.

    Attributes:
        first: Index of the first input.
        seconds: Begin no query later than this.
        queries: At most so many.
        settle: Whether to answer one query first that is not counted, because another process had the caches.
    """

    first: int
    seconds: float
    queries: int
    settle: bool
    op: Literal["measure"] = "measure"


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Answer queries that arrive when they like, one after the other, each not before its time.

    Attributes:
        origin_ns: What the arrivals are counted from, by ``time.perf_counter_ns``, which all processes of a machine share.
        arrivals_s: When each comes, in rising order.
        stop_s: Begin none after this; those that are left were not served.
        first: Index of the first input.
    """

    origin_ns: int
    arrivals_s: tuple[float, ...]
    stop_s: float
    first: int
    op: Literal["attend"] = "attend"


@dataclass(frozen=True, kw_only=True)
class Spin:
    """Answer queries for a time and keep nothing of them: a load for a meter, or for a cooler."""

    first: int
    seconds: float
    op: Literal["spin"] = "spin"


@dataclass(frozen=True, kw_only=True)
class Spun:
    """How many queries were answered."""

    queries: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The latencies of one turn.

    Attributes:
        samples: Every query; `at_s` is by ``time.perf_counter``.
        truncated: Indices of the inputs that were cut to the model's length.
        peak_memory_bytes: Of the process, so far.
    """

    samples: Samples
    truncated: tuple[int, ...]
    peak_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An expected failure: the name of its class in `edgelm.errors`, and its message."""

    error: str
    message: str
