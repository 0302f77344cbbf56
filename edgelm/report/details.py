"""Everything that is known of one run, as names and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgelm.bench import Conditions, EnergyRecord, GenerationRun, Run
from edgelm.report.cautions import warnings_of
from edgelm.report.foreign import ForeignRun
from edgelm.report.numbers import DASH, digits, energy, latency, milliseconds, percent, size
from edgelm.report.rows import Row
from edgelm.report.tables import placement_words

__all__ = ["Details", "Fact", "details_of"]

_MOST_BUCKETS = 8


@dataclass(frozen=True)
class Fact:
    """A fact; `wide` where it needs a line of its own."""

    name: str
    text: str
    wide: bool = False


@dataclass(frozen=True)
class Details:
    """All of a run: what must be known first, then its facts."""

    row: Row
    warnings: tuple[str, ...]
    facts: tuple[Fact, ...]


def details_of(row: Row) -> Details:
    """Return everything that is known of a run."""
    result = row.result
    if isinstance(result, ForeignRun):
        facts = tuple(_of_foreign(row, result))
    else:
        measured = _of_answers(result, row) if isinstance(result, Run) else _of_writing(result, row)
        facts = (*measured, *_of_energy(result.energy, row), *_of_bundle(result), *_of_measuring(result))
    return Details(row, warnings_of(result), tuple(fact for fact in facts if fact.text))


def _of_answers(run: Run, row: Row) -> Iterator[Fact]:
    results, settings = run.results, run.settings
    if row.timed:
        spread = (("p50", results.p50_s), ("p90", results.p90_s), ("p99", results.p99_s), ("p99.9", results.p999_s))
        yield Fact("Latency", " · ".join(f"{name} {latency(value)}" for name, value in spread), wide=True)
        yield Fact("Mean", latency(results.mean_s))
        yield Fact("Fastest, slowest", f"{latency(results.min_s)}, {latency(results.max_s)}")
        yield Fact("Jitter, tail", f"{latency(results.jitter_s)}, {latency(results.tail_s)}")
        yield Fact("Tokenise, run (p50)", f"{latency(results.tokenize_p50_s)}, {latency(results.run_p50_s)}")
        yield Fact("Load, first query", f"{latency(results.load_s)}, {latency(results.first_inference_s)}")
        yield Fact("Queries/s", digits(results.throughput_per_s))
        if results.deadline_hit_rate is not None:
            yield Fact("In time", f"{percent(results.deadline_hit_rate)} of {latency(settings.deadline_s)}")
        most = sorted(results.buckets, key=lambda bucket: -bucket.queries)[:_MOST_BUCKETS]
        lengths = sorted(most, key=lambda bucket: bucket.sequence_length)
        told = " · ".join(
            f"{bucket.sequence_length}: {milliseconds(bucket.p50_s)} ms ({bucket.queries:,})" for bucket in lengths
        )
        yield Fact("Length: p50 (queries)", told, wide=True)
        if run.realtime is not None:
            real = run.realtime
            yield Fact(
                "Arrivals",
                f"{digits(real.rate_per_s)} a second, {real.arrivals}: {real.served:,} of {real.arrived:,} answered, "
                f"{percent(real.hit_rate)} in time, busy {percent(real.utilisation)}",
                wide=True,
            )
        yield from _of_memory(results.baseline_memory_bytes, results.peak_memory_bytes)
        yield from _of_sustained(run)
    inputs = "texts or arrays of the bundle" if settings.inputs == "golden" else "texts given"
    yield Fact("Inputs", f"{settings.input_count:,} {inputs}")
    settled = "settled" if settings.warm_up_settled else "not settled"
    yield Fact("Warm-up", f"{settings.warm_up_queries:,} queries, {settled}")


def _of_writing(run: GenerationRun, row: Row) -> Iterator[Fact]:
    results, settings = run.results, run.settings
    if row.timed:
        tokens = (
            ("p50", results.inter_token_p50_s),
            ("p90", results.inter_token_p90_s),
            ("p99", results.inter_token_p99_s),
        )
        yield Fact("Token", " · ".join(f"{name} {latency(value)}" for name, value in tokens), wide=True)
        yield Fact("First token", latency(results.ttft_s))
        yield Fact(
            "Tokens/s", f"reads {digits(results.prefill_tokens_per_s)}, writes {digits(results.decode_tokens_per_s)}"
        )
        yield Fact("Load", latency(results.load_s))
        yield from _of_memory(results.baseline_memory_bytes, results.peak_memory_bytes)
        yield from _of_sustained(run)
    yield Fact("Depth", f"{settings.depth:,} tokens in the cache before")
    yield Fact(
        "Repetitions",
        f"{len(run.samples.prefill_s)} of {settings.prefill_tokens:,} tokens read, {settings.decode_tokens:,} written",
    )


def _of_memory(baseline: int | None, peak: int | None) -> Iterator[Fact]:
    yield Fact("Memory", f"{size(peak)} at most, {size(baseline)} before loading")


def _of_sustained(run: Run | GenerationRun) -> Iterator[Fact]:
    if run.sustained is None:
        return
    told = " · ".join(
        f"{point.at_s:.0f} s: {latency(point.p50_s)} (× {digits(point.ratio)})" for point in run.sustained.checkpoints
    )
    steady = run.sustained.steady_at_s
    state = "no steady state" if steady is None else f"steady after {steady:.0f} s"
    yield Fact("Under load", f"{told} · {state}, by {run.sustained.criterion}", wide=True)


def _of_energy(record: EnergyRecord, row: Row) -> Iterator[Fact]:
    if record.per_inference_j is None or not row.timed:
        yield Fact("Energy", f"not measured ({'; '.join(record.notes) or row.reason('energy')})", wide=True)
        return
    bound = "" if record.uncertainty_j is None else f", off by at most {energy(record.uncertainty_j)}"
    deviation = "" if record.standard_j is None else f" ± {energy(record.standard_j)}"
    what = "net of rest" if record.net_j is not None else "rest included"
    rest = "" if record.idle_w is None else f", {digits(record.idle_w)} W at rest"
    notes = f" ({'; '.join(record.notes)})" if record.notes else ""
    yield Fact(
        "Energy",
        f"{record.method}: {energy(record.per_inference_j)}{deviation} an answer{bound}, {what}{rest}, "
        f"of the {record.scope or 'device'} by {record.sensor or 'a sensor without a name'}{notes}",
        wide=True,
    )
    charge = row.value("answers_per_charge")
    yield Fact("Per charge", f"{charge:,.0f} answers" if charge is not None else DASH)


def _of_bundle(run: Run | GenerationRun) -> Iterator[Fact]:
    bundle, runtime = run.bundle, run.runtime
    yield Fact(
        "Runtime",
        f"{runtime.runtime} {runtime.runtime_version} on {runtime.device}, {runtime.delegate}, {runtime.threads} threads",
    )
    yield Fact("Model", f"{bundle.parameters:,} weights, {bundle.family or 'no family'}, {bundle.path}")
    yield Fact("Architecture", _pairs(bundle.architecture), wide=True)
    yield Fact("Files", f"{size(bundle.size_bytes)} model, {size(bundle.bundle_size_bytes)} bundle")
    parity = bundle.parity
    same = "" if parity.agreement is None else f", same label on {percent(parity.agreement)}"
    yield Fact(
        "Against Keras",
        f"off by at most {digits(parity.max_abs_error)} of {digits(parity.reference_range)}{same}, "
        f"{parity.samples} {parity.inputs} inputs",
    )
    accuracy = bundle.accuracy
    if accuracy is not None:
        told = f"{percent(accuracy.artifact)}, Keras {percent(accuracy.keras)}"
        yield Fact("Accuracy", f"{told}, {accuracy.samples:,} samples of {accuracy.data}")


def _of_measuring(run: Run | GenerationRun) -> Iterator[Fact]:
    others = run.settings.alternated_with
    yield Fact("Mode", run.settings.mode)
    yield Fact("In turns with", f"{others} {'other' if others == 1 else 'others'}")
    yield Fact("Temperature", _temperatures(run))
    if run.background is not None:
        background = run.background
        yield Fact(
            "Others", f"{background.others_cores_mean:.2f} cores on average, {background.others_cores_max:.2f} at most"
        )
    yield Fact("Started", run.started.replace("T", " ").replace("+00:00", " UTC"))
    yield Fact("Evidence", f"{run.evidence}: {run.evidence_reason}", wide=True)
    yield Fact("Versions", _pairs(run.packages), wide=True)
    yield Fact("Manifest SHA-256", run.bundle.manifest_sha256, wide=True)
    yield Fact("Run", run.id)


def _of_foreign(row: Row, run: ForeignRun) -> Iterator[Fact]:
    yield Fact("Measured by", run.source, wide=True)
    yield Fact("On", run.device)
    yield Fact("Runtime", run.runtime)
    yield Fact("Threads", DASH if run.threads is None else str(run.threads))
    yield Fact("Weights", run.recipe)
    yield Fact("Placement", placement_words(row))
    yield Fact("Started", run.started or DASH)
    yield Fact("Notes", "; ".join(run.notes), wide=True)


def _pairs(table: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items()) or DASH


def _temperatures(run: Run | GenerationRun) -> str:
    before, after = (_hottest(state) for state in (run.before, run.after))
    return "no sensor" if before is None or after is None else f"{before:.0f} °C before, {after:.0f} °C after"


def _hottest(state: Conditions | None) -> float | None:
    return None if state is None else max((zone.temperature_c for zone in state.thermal_zones), default=None)
