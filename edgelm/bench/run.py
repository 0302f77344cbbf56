"""A run: one bundle measured in one runtime on one machine, with everything needed to judge the numbers.

Its JSON schema is ``run.schema.json`` beside this file, made from these classes and checked by a test. None means that
something was not measured or is not known; it never stands for 0. Times are seconds, sizes bytes.

The schema version is one integer. A reader takes every version up to its own, and refuses a newer one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dacite
from edgelm_runtimes.machine import FrequencyPolicy, MachineFacts, ThermalZone, Throttling
from edgelm_runtimes.program import ProgramFacts

from edgelm.bundle import Accuracy, Parity
from edgelm.errors import InputError

__all__ = [
    "FORMAT",
    "SCHEMA_VERSION",
    "Bucket",
    "BundleFacts",
    "Conditions",
    "Energy",
    "ProfileFacts",
    "Results",
    "Run",
    "Samples",
    "Settings",
    "parse_json",
]

FORMAT = "edgelm-run"
SCHEMA_VERSION = 1

_ERROR_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What was measured: from the bundle's manifest.

    Attributes:
        name: The bundle's name.
        manifest_sha256: SHA-256 (hex) of ``manifest.json``, which holds the SHA-256 of every other file: two runs with
            the same one measured the same bytes.
        task: ``classify``, ``embed`` or ``raw``.
        recipe: Such as ``dynamic_wi8_afp32``.
        format: ``tflite`` or ``onnx``.
        size_bytes: Of the model file with its external weights.
        bundle_size_bytes: Of every file that a device needs: models of all formats, tokenizer, golden vectors.
        parameters: Number of weights.
        path: ``recognised`` or ``traced``.
        family: The family reader, or None where traced.
        architecture: Layers, width, heads and so on.
        parity: Against Keras, as the converter measured it.
        accuracy: On labelled data, as the converter measured it; None where no such data was given.
    """

    name: str
    manifest_sha256: str
    task: str
    recipe: str
    format: str
    size_bytes: int
    bundle_size_bytes: int
    parameters: int
    path: str
    family: str | None
    architecture: dict[str, int | float | str | bool | None]
    parity: Parity
    accuracy: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class ProfileFacts:
    """The device that the numbers are wanted for, and whether they were measured on it.

    Attributes:
        name: The profile, such as ``raspberry-pi-5``.
        title: Its name for people.
        match: Whether this machine is that device. If False, the run says nothing about the device's speed.
        detected: The profile that fits this machine; None if none does.
        statement: The same in a sentence, such as "Measured on AMD EPYC (x86_64), not on Raspberry Pi 5."
    """

    name: str
    title: str
    match: bool
    detected: str | None
    statement: str


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The state of the machine at one moment.

    Attributes:
        load_average_1min: Runnable processes, averaged over one minute; the benchmark itself is among them.
        thermal_zones: Temperatures.
        frequency_policies: Clocks.
        throttling: Limits of the clock, where the board can tell.
    """

    load_average_1min: float | None
    thermal_zones: tuple[ThermalZone, ...]
    frequency_policies: tuple[FrequencyPolicy, ...]
    throttling: Throttling | None

    @classmethod
    def of(cls, machine: MachineFacts) -> Conditions:
        """Return the state that is part of the machine's facts."""
        return cls(
            load_average_1min=machine.load_average_1min,
            thermal_zones=machine.thermal_zones,
            frequency_policies=machine.frequency_policies,
            throttling=machine.throttling,
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it was measured.

    Attributes:
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
    """

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
        deadline_hit_rate: Share of the queries within the deadline; None without one.
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
    """

    latency_s: tuple[float, ...]
    tokenize_s: tuple[float, ...] | None = None
    run_s: tuple[float, ...] | None = None
    tokens: tuple[int, ...] | None = None
    sequence_length: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The energy of one query.

    Attributes:
        energy_j: Joules a query; None where it was not measured.
        method: ``measured``, ``modelled`` or ``not measured``.
        scope: What the sensor sees: ``package``, ``board``, ``device`` or ``wall``; None without a sensor.
        reason: Why it was not measured.
    """

    energy_j: float | None
    method: Literal["measured", "modelled", "not measured"]
    scope: Literal["package", "board", "device", "wall"] | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One bundle, measured in one runtime on one machine.

    Attributes:
        format: ``edgelm-run``.
        schema_version: Of this record.
        id: 16 random hexadecimal digits.
        started: ISO 8601, UTC.
        evidence: ``measured`` on this machine's own processor, or ``executed`` under emulation, where the timings mean
            nothing and the report leaves them out.
        interrupted: Whether it was stopped before the queries or the time that were asked for.
        bundle: What was measured.
        runtime: What ran it.
        machine: The machine and its state before.
        profile: The device that the numbers are wanted for; None where none was named and none fits.
        before: The machine's state before the warm-up.
        after: The machine's state after the last query.
        settings: How it was measured.
        results: What came out.
        energy: Of one query.
        packages: Versions of edgelm and of what it stands on.
        samples: Every query.
    """

    format: str
    schema_version: int
    id: str
    started: str
    evidence: Literal["measured", "executed"]
    interrupted: bool
    bundle: BundleFacts
    runtime: ProgramFacts
    machine: MachineFacts
    profile: ProfileFacts | None
    before: Conditions
    after: Conditions
    settings: Settings
    results: Results
    energy: Energy
    packages: dict[str, str]
    samples: Samples

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON-able values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the run as one line of JSON, without a line end.

        Raises:
            ValueError: A number is not finite.
        """
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

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
        version = data.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise InputError(f"The run has the schema version {version!r}, which no edgelm ever wrote.")
        if version > SCHEMA_VERSION:
            raise InputError(
                f"The run has schema version {version}, and this edgelm reads up to {SCHEMA_VERSION}. "
                "Update edgelm on this machine."
            )
        try:
            run = dacite.from_dict(cls, data, _STRICT)
        except (dacite.DaciteError, TypeError, ValueError, RecursionError) as error:
            # dacite repeats the whole value, which may be a hundred thousand latencies.
            reason = str(error)[:_ERROR_CHARACTERS]
            raise InputError(f"The run does not follow its schema ({reason}): the file is damaged.") from error
        _check(run)
        return run


_STRICT = dacite.Config(strict=True, cast=[tuple])


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
    columns = (samples.tokenize_s, samples.run_s, samples.tokens, samples.sequence_length)
    count = len(samples.latency_s)
    if (
        not count
        or run.results.queries != count
        or any(column is not None and len(column) != count for column in columns)
    ):
        raise InputError("The run's samples are empty or their columns differ in length: the file is damaged.")
    if not all(math.isfinite(value) and value > 0 for value in samples.latency_s):
        raise InputError("The run has a latency that is not above 0 s: the file is damaged.")
