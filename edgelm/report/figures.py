"""The figures of a run by name: what tables show, what ``--check`` asks for, what the JSON has.

Every figure is a number in SI units, or the reason why there is none. A figure of time, energy or memory counts only where
the run was measured: under emulation it would be the emulator's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edgelm.bench import GenerationRun, Run
from edgelm.meters.record import EnergyRecord
from edgelm.report.battery import Battery, answers_per_charge
from edgelm.report.foreign.run import ForeignRun

__all__ = ["FIELDS", "Dimension", "Field", "NotMeasured", "Result", "Value", "figures_of"]

Dimension = Literal["time", "share", "rate", "bytes", "energy", "count", "ratio"]
Result = Run | GenerationRun | ForeignRun


@dataclass(frozen=True)
class NotMeasured:
    """Why a figure is not there."""

    reason: str


Value = float | NotMeasured


@dataclass(frozen=True)
class Field:
    """A figure that runs may have.

    Attributes:
        dimension: Which decides the unit: s, 1, 1/s, B, J or none.
        about: What it is, in words.
        answers: Reads it from a run of a model that answers; None where such a run has none.
        tokens: Reads it from a language model's run; likewise.
        timed: Whether it counts only where the run was measured.
    """

    dimension: Dimension
    about: str
    answers: Callable[[Run], float | None] | None = None
    tokens: Callable[[GenerationRun], float | None] | None = None
    timed: bool = True


def figures_of(result: Result, battery: Battery | None) -> dict[str, Value]:
    """Return every figure of a run, or why it is not there.

    Args:
        result: A run.
        battery: Of its device; None where it has none, or none is known.
    """
    figures = {name: _figure(result, name, field) for name, field in FIELDS.items()}
    if not isinstance(result, ForeignRun):
        figures["answers_per_charge"] = _per_charge(result, figures["energy"], battery)
    return figures


def _figure(result: Result, name: str, field: Field) -> Value:
    if isinstance(result, ForeignRun):
        value = result.figures.get(name)
        return NotMeasured(f"{result.source} does not report it") if value is None else value
    if field.timed and result.evidence != "measured":
        return NotMeasured(f"the run was {result.evidence}, not measured: {result.evidence_reason}")
    if isinstance(result, Run):
        if field.answers is None:
            return NotMeasured("only language models have it")
        value = field.answers(result)
    else:
        if field.tokens is None:
            return NotMeasured("a language model's run does not have it")
        value = field.tokens(result)
    return NotMeasured(_why(result, name)) if value is None else value


def _why(result: Run | GenerationRun, name: str) -> str:
    if name in ("p90", "p99", "p999", "token_p90", "token_p99", "tail", "jitter"):
        amount = f"{result.results.queries:,} queries" if isinstance(result, Run) else "so few tokens"
        return f"{amount} are too few for it"
    if "accuracy" in name:
        return "no labelled data was given to the converter"
    if "energy" in name:
        notes = result.energy.notes
        if result.energy.method == "modelled":
            return "the energy was modelled, not measured"
        if result.energy.per_inference_j is None:
            return "; ".join(notes) or "no meter was read"
        return "the meter did not tell prompt and answer apart" if result.energy.reliable else "; ".join(notes)
    if name == "deadline_hit_rate":
        return "no deadline was set"
    if name == "peak_memory":
        return "the system does not tell it"
    if name == "slowdown":
        return "only runs of the mode 'sustained' have it"
    return "it was not measured"


def _per_charge(result: Run | GenerationRun, energy: Value, battery: Battery | None) -> Value:
    if isinstance(energy, NotMeasured):
        return NotMeasured(f"it needs the energy of an answer: {energy.reason}")
    if battery is None:
        return NotMeasured("the device's profile has no battery: give one with --battery-wh")
    record = result.energy
    # A battery also pays for what the device draws at rest, so this is of gross, not of net energy.
    gross = None if record.gross_j is None or not record.inferences else record.gross_j / record.inferences
    joules = energy if gross is None else gross
    return answers_per_charge(battery, joules) if joules > 0 else NotMeasured("the energy is not above what rest takes")


def _measured(record: EnergyRecord, joules: float | None) -> float | None:
    """Return a measured energy that can be relied on, and nothing else."""
    usable = record.method == "measured" and (record.reliable or not record.windows)
    return joules if usable else None


def _drop(run: Run) -> float | None:
    accuracy = run.bundle.accuracy
    return None if accuracy is None else accuracy.keras - accuracy.artifact


def _slowdown(run: Run | GenerationRun) -> float | None:
    return None if run.sustained is None or not run.sustained.checkpoints else run.sustained.checkpoints[-1].ratio


FIELDS: Mapping[str, Field] = {
    "p50": Field("time", "median latency", lambda run: run.results.p50_s),
    "p90": Field("time", "latency that 90 % of the queries keep", lambda run: run.results.p90_s),
    "p99": Field("time", "latency that 99 % keep", lambda run: run.results.p99_s),
    "p999": Field("time", "latency that 99.9 % keep", lambda run: run.results.p999_s),
    "mean": Field("time", "mean latency", lambda run: run.results.mean_s),
    "min": Field("time", "shortest latency", lambda run: run.results.min_s),
    "max": Field("time", "longest latency", lambda run: run.results.max_s),
    "jitter": Field("time", "standard deviation of the latency", lambda run: run.results.jitter_s),
    "tail": Field("time", "p99 less p50", lambda run: run.results.tail_s),
    "reported_latency": Field("time", "what another tool states as its latency"),
    "ttft": Field("time", "time to the first token", None, lambda run: run.results.ttft_s),
    "token_p50": Field("time", "median time of a token", None, lambda run: run.results.inter_token_p50_s),
    "token_p90": Field("time", "time that 90 % of the tokens keep", None, lambda run: run.results.inter_token_p90_s),
    "token_p99": Field("time", "time that 99 % of the tokens keep", None, lambda run: run.results.inter_token_p99_s),
    "load": Field("time", "from a path to a session", lambda run: run.results.load_s, lambda run: run.results.load_s),
    "first_inference": Field("time", "the first query after loading", lambda run: run.results.first_inference_s),
    "throughput": Field("rate", "queries a second, one after the other", lambda run: run.results.throughput_per_s),
    "prefill_tokens_per_s": Field(
        "rate", "prompt tokens a second", None, lambda run: run.results.prefill_tokens_per_s
    ),
    "decode_tokens_per_s": Field("rate", "written tokens a second", None, lambda run: run.results.decode_tokens_per_s),
    "accuracy": Field(
        "share",
        "on labelled data, of the file that ran",
        lambda run: None if run.bundle.accuracy is None else run.bundle.accuracy.artifact,
        lambda run: None if run.bundle.accuracy is None else run.bundle.accuracy.artifact,
        timed=False,
    ),
    "accuracy_drop": Field("share", "accuracy of the Keras model less that of the file", _drop, timed=False),
    "deadline_hit_rate": Field("share", "queries within the deadline", lambda run: run.results.deadline_hit_rate),
    "size": Field(
        "bytes",
        "the model's file",
        lambda run: float(run.bundle.size_bytes),
        lambda run: float(run.bundle.size_bytes),
        timed=False,
    ),
    "bundle_size": Field(
        "bytes",
        "every file that a device needs",
        lambda run: float(run.bundle.bundle_size_bytes),
        lambda run: float(run.bundle.bundle_size_bytes),
        timed=False,
    ),
    "peak_memory": Field(
        "bytes",
        "most memory resident",
        lambda run: run.results.peak_memory_bytes,
        lambda run: run.results.peak_memory_bytes,
    ),
    "energy": Field(
        "energy",
        "of an answer, measured",
        lambda run: _measured(run.energy, run.energy.per_inference_j),
        lambda run: _measured(run.energy, run.energy.per_inference_j),
    ),
    "energy_per_token": Field(
        "energy", "of a written token, measured", None, lambda run: _measured(run.energy, run.energy.decode_j_per_token)
    ),
    "prefill_energy_per_token": Field(
        "energy", "of a prompt token, measured", None, lambda run: _measured(run.energy, run.energy.prefill_j_per_token)
    ),
    "answers_per_charge": Field("count", "that a full battery gives, one after the other", lambda run: None, lambda run: None),
    "slowdown": Field("ratio", "latency at the end of a sustained run to that at its start", _slowdown, _slowdown),
    "depth": Field("count", "tokens in the cache before", None, lambda run: float(run.settings.depth), timed=False),
    "queries": Field("count", "latencies measured", lambda run: float(run.results.queries)),
    "parameters": Field(
        "count",
        "weights of the model",
        lambda run: float(run.bundle.parameters),
        lambda run: float(run.bundle.parameters),
        timed=False,
    ),
}  # fmt: skip
"""Every figure by the name that ``--check`` and the JSON know it by."""
