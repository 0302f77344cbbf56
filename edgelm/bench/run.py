"""A run: one bundle measured in one runtime on one machine, with everything needed to judge the numbers.

Its JSON schema is ``run.schema.json`` beside this file, made from these classes and checked by a test. None means that
something was not measured or is not known; it never stands for 0. Times are seconds, sizes bytes.

The schema version is one integer. A reader takes every version up to its own, and refuses a newer one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import dacite
from edgelm_runtimes.machine import MachineFacts
from edgelm_runtimes.program import ProgramFacts

from edgelm.bench.context import BundleFacts, Conditions, ProfileFacts
from edgelm.bench.findings import (
    Background,
    Comparison,
    Evidence,
    Mode,
    RealTime,
    StoredSamples,
    Sustained,
    TimelinePoint,
)
from edgelm.bench.upgrade import upgrade_run
from edgelm.errors import InputError
from edgelm.meters.record import EnergyRecord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "FORMAT",
    "SCHEMA_VERSION",
    "STRICT",
    "Bucket",
    "Results",
    "Run",
    "Samples",
    "Settings",
    "check_version",
    "parse_json",
    "to_line",
]

FORMAT = "edgelm-run"
SCHEMA_VERSION = 2

_ERROR_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it was measured.

    Attributes:
        mode: ``quick``, ``standard``, ``sustained``, ``mlperf`` or ``realtime``; ``docs/benchmark.md`` has what each does.
        threads: As asked for; None left it to edgelm. What was used is in the runtime's facts.
        queries: The number asked for; None if no number was.
        seconds: The time asked for; None if none was.
        deadline_s: What a query may take at most; None if there is none.
        inputs: ``golden`` (the bundle's own) or ``given`` (the user's texts).
        input_count: Different inputs, which were cycled through.
        truncated_inputs: Those of them that were cut to the model's length.
        warm_up_queries: Queries before the measurement, the first one apart.
        warm_up_settled: Whether the p50 had settled by then; False if the bound was reached first.
        alternated_with: Other bundles or runtimes that were measured in turn with this one.
        order_seed: Of the order of the turns and of the arrivals; None where an earlier edgelm did not keep it.
        resumed: How often it was stopped and taken up again.
    """

    mode: Mode
    threads: int | None
    queries: int | None
    seconds: float | None
    deadline_s: float | None
    inputs: Literal["golden", "given"]
    input_count: int
    truncated_inputs: int
    warm_up_queries: int
    warm_up_settled: bool
    alternated_with: int
    order_seed: int | None
    resumed: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The queries that ran at one sequence length, padding included."""

    sequence_length: int
    queries: int
    p50_s: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured. Latency is from the call with a text (or arrays) to the answer, tokenisation included.

    A percentile is a nearest rank: a value that was measured. It is None with too few queries to expect one above it: 10
    for p90, 100 for p99, 1000 for p99.9.

    Attributes:
        queries: Latencies measured.
        mean_s: Arithmetic mean.
        jitter_s: Standard deviation (n − 1) of the latencies; None of fewer than two.
        tail_s: p99 − p50: how much later than usual the slowest percent comes.
        tokenize_p50_s: Text to ids; None where there is no tokenizer.
        run_p50_s: Inside the runtime; None where the session does not tell it apart.
        throughput_per_s: Queries a second, one after the other.
        load_s: From a path to a session that can answer, in a fresh process, the import of the runtime included.
        first_inference_s: The first query after loading, which was not warmed up.
        baseline_memory_bytes: Most memory resident before loading: Python, NumPy and edgelm.
        peak_memory_bytes: Most memory resident in the whole life of the process, which ran nothing but this.
        overhead_s: What the benchmark itself takes from one query to the next, measured on one that does nothing; of it only
            the reading of a clock is in a latency. None where an earlier edgelm did not measure it.
        deadline_hit_rate: Share of the queries within the deadline, the waiting of `RealTime` included; None without one.
        buckets: Per sequence length, in rising order; empty where the model has none.
    """

    queries: int
    p50_s: float
    p90_s: float | None
    p99_s: float | None
    p999_s: float | None
    mean_s: float
    min_s: float
    max_s: float
    jitter_s: float | None
    tail_s: float | None
    tokenize_p50_s: float | None
    run_p50_s: float | None
    throughput_per_s: float
    load_s: float
    first_inference_s: float
    baseline_memory_bytes: int | None
    peak_memory_bytes: int | None
    overhead_s: float | None
    deadline_hit_rate: float | None
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Every query in the order of its measurement, a column each; all columns are of one length.

    Attributes:
        latency_s: Text (or arrays) to answer.
        tokenize_s: Text to ids; None where there is no tokenizer.
        run_s: Inside the runtime; None where the session does not tell it apart.
        tokens: Tokens of the text; None where there is no tokenizer.
        sequence_length: At which it ran, padding included; None where the model has none.
        block: The round of turns that it was measured in, from 0: what runs of one session have in common.
        at_s: When it began, since the measurement began.
        queue_s: How long it waited for its turn, where queries come when they like.
    """

    latency_s: tuple[float, ...]
    tokenize_s: tuple[float, ...] | None = None
    run_s: tuple[float, ...] | None = None
    tokens: tuple[int, ...] | None = None
    sequence_length: tuple[int, ...] | None = None
    block: tuple[int, ...] | None = None
    at_s: tuple[float, ...] | None = None
    queue_s: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One bundle, measured in one runtime on one machine.

    Attributes:
        format: ``edgelm-run``.
        schema_version: Of this record.
        id: 16 random hexadecimal digits.
        session: Likewise, the same for all that were measured in turns with this one.
        started: ISO 8601, UTC.
        evidence: ``measured`` on this machine's own processor; ``executed`` under emulation or a software driver, where the
            timings mean nothing and the report leaves them out; or ``analysed``, never run at all.
        evidence_reason: How that is known.
        stopped: Why it ended before the queries or the time that were asked for; None where it did not.
        bundle: What was measured.
        runtime: What ran it.
        machine: The machine and its state before.
        profile: The device that the numbers are wanted for; None where none was named and none fits.
        before: The machine's state before the warm-up.
        after: The machine's state after the last query.
        settings: How it was measured.
        results: What came out.
        energy: Of the queries, as a sensor saw it.
        modelled_energy: The same as the power in the profile would have it: never a measurement, and only where asked for.
        background: What other processes did meanwhile; None where the system does not tell.
        timeline: The machine and the speed over time.
        sustained: What became of the speed under load that went on; None in other modes.
        realtime: How it kept up with arrivals; None in other modes.
        mlperf: The results under the names of MLPerf's load generator; None in other modes.
        comparisons: With other runs of the session.
        packages: Versions of edgelm and of what it stands on.
        samples: Every query.
    """

    format: str
    schema_version: int
    id: str
    session: str
    started: str
    evidence: Evidence
    evidence_reason: str
    stopped: str | None
    bundle: BundleFacts
    runtime: ProgramFacts
    machine: MachineFacts
    profile: ProfileFacts | None
    before: Conditions
    after: Conditions
    settings: Settings
    results: Results
    energy: EnergyRecord
    modelled_energy: EnergyRecord | None
    background: Background | None
    timeline: tuple[TimelinePoint, ...]
    sustained: Sustained | None
    realtime: RealTime | None
    mlperf: dict[str, str | int | float | bool] | None
    comparisons: tuple[Comparison, ...]
    packages: dict[str, str]
    samples: Samples

    @property
    def interrupted(self) -> bool:
        """Whether it ended before the queries or the time that were asked for."""
        return self.stopped is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON-able values."""
        return asdict(self)

    def to_json(self, stored: StoredSamples | None = None) -> str:
        """Return the run as one line of JSON, without a line end.

        Args:
            stored: Where the samples are, for a line that does not hold them.

        Raises:
            ValueError: A number is not finite.
        """
        return to_line(self, stored)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Read a run, strictly.

        Raises:
            InputError: It is not a run, is of a newer schema, lacks a field, or has one too many.
        """
        return cls.from_dict(parse_json(text))

    @classmethod
    def from_dict(cls, data: object) -> Run:
        """Read a run from the values of its JSON, strictly.

        Raises:
            InputError: As `from_json`.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f'It is not a run of edgelm benchmark: it has no "format": "{FORMAT}".')
        version = check_version(data, SCHEMA_VERSION)
        try:
            run = dacite.from_dict(cls, upgrade_run(data) if version == 1 else data, STRICT)
        except (dacite.DaciteError, TypeError, ValueError, RecursionError) as error:
            # dacite repeats the whole value, which may be a hundred thousand latencies.
            reason = str(error)[:_ERROR_CHARACTERS]
            raise InputError(f"The run does not follow its schema ({reason}): the file is damaged.") from error
        _check(run)
        return run


STRICT = dacite.Config(strict=True, cast=[tuple])


def check_version(data: dict[str, Any], newest: int) -> int:
    """Return the schema version of a record.

    Raises:
        InputError: It is none, or a newer one.
    """
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"The run has the schema version {version!r}, which no edgelm ever wrote.")
    if version > newest:
        raise InputError(
            f"The run has schema version {version}, and this edgelm reads up to {newest}. Update edgelm on this machine."
        )
    return version


def to_line(run: DataclassInstance, stored: StoredSamples | None) -> str:
    """Return a run as one line of JSON whose last value is its samples, or where they are.

    Raises:
        ValueError: A number is not finite.
    """
    if stored is None:
        data = asdict(run)
    else:
        # Not by asdict of the whole: it would copy a hundred thousand latencies only to drop them.
        data = {field.name: _plain(getattr(run, field.name)) for field in fields(run) if field.name != "samples"}
        data["samples"] = asdict(stored)
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def parse_json(text: str | bytes) -> Any:
    """Return the values of a JSON text (UTF-8, if bytes), without the NaN and Infinity that Python would let through.

    Raises:
        InputError: It is not JSON.
    """
    try:
        words = text if isinstance(text, str) else text.decode()
        return json.loads(words, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"It is not valid JSON ({str(error)[:_ERROR_CHARACTERS]}): the file is damaged.") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _check(run: Run) -> None:
    """Refuse what the types allow and no benchmark writes: a report would divide by it or draw nonsense."""
    samples = run.samples
    columns = [getattr(samples, field.name) for field in fields(samples)]
    count = len(samples.latency_s)
    if (
        not count
        or run.results.queries != count
        or any(column is not None and len(column) != count for column in columns)
    ):
        raise InputError("The run's samples are empty or their columns differ in length: the file is damaged.")
    if not all(math.isfinite(value) and value > 0 for value in samples.latency_s):
        raise InputError("The run has a latency that is not above 0 s: the file is damaged.")
