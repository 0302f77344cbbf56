"""What ``edgelm benchmark`` says below its table: comparisons, energy, real time, heat, what to be careful with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from edgelm.cli.output import complain

if TYPE_CHECKING:
    from edgelm.bench import Comparison, EnergyRecord, RealTime, Sustained
    from edgelm.bench.log import AnyRun

__all__ = ["milliseconds", "print_findings"]

# From here on a neighbour's work shows in the times.
_BUSY_CORES = 0.2


def milliseconds(value: float | None, digits: int = 3) -> str:
    """Return a time in milliseconds; a dash where there is none."""
    return "—" if value is None else f"{value * 1e3:.{digits}f}"


def print_findings(runs: Sequence[AnyRun]) -> None:
    """Print what was found beside the times of a table."""
    from edgelm.bench import Run

    for run in runs:
        name = f"{run.bundle.name} in {run.runtime.runtime}"
        for comparison in run.comparisons:
            click.echo(f"{name} is {_compared(comparison)}")
        if isinstance(run, Run) and run.realtime is not None:
            click.echo(f"{name}: {_real_time(run.realtime, run.settings.deadline_s)}")
        if isinstance(run, Run) and run.mlperf is not None:
            p90_ns, validity = run.mlperf["90th percentile latency (ns)"], run.mlperf["result_validity"]
            click.echo(f"{name}: SingleStream, 90th percentile latency {p90_ns} ns, {validity}")
        if run.sustained is not None:
            click.echo(f"{name}: {_sustained(run.sustained)}")
    _print_energy(runs)
    overheads = [run.results.overhead_s for run in runs if isinstance(run, Run) and run.results.overhead_s is not None]
    if overheads:
        click.echo(f"benchmark's own cost: {max(overheads) * 1e6:.1f} µs a query, almost all of it outside the times")
    for warning in dict.fromkeys(_warnings(runs)):
        complain(warning)


def _compared(comparison: Comparison) -> str:
    if comparison.ratio is None or comparison.low is None or comparison.high is None:
        return f"not compared with {comparison.with_name}: {comparison.blocks} turns are too few, measure for longer"
    verdict = {"faster": "faster than", "slower": "slower than"}.get(comparison.verdict, "not to be told from")
    caveats = f"; but {'; '.join(comparison.caveats)}" if comparison.caveats else ""
    return (
        f"{verdict} {comparison.with_name}: {comparison.ratio:.3f} times its {comparison.quantity} "
        f"({comparison.low:.3f} to {comparison.high:.3f} at {comparison.confidence:.0%}, {comparison.blocks} turns){caveats}"
    )


def _real_time(found: RealTime, deadline_s: float | None) -> str:
    hits = (
        "" if found.hit_rate is None or deadline_s is None else f"{found.hit_rate:.1%} within {deadline_s * 1e3:g} ms, "
    )
    waits = f"waiting p50 {milliseconds(found.queue.p50_s)} ms, p99 {milliseconds(found.queue.p99_s)} ms"
    work = f"service p50 {milliseconds(found.service.p50_s)} ms, p99 {milliseconds(found.service.p99_s)} ms"
    served = f"{found.served:,} of {found.arrived:,} served, {found.utilisation:.0%} busy"
    return f"{found.rate_per_s:g} a second ({found.arrivals}): {hits}{waits}; {work}; {served}"


def _sustained(found: Sustained) -> str:
    steady = f"steady after {found.steady_at_s:.0f} s" if found.steady_at_s is not None else "not steady"
    points = ", ".join(f"{point.at_s:.0f} s {point.ratio:.2f}×" for point in found.checkpoints)
    return f"{steady}; p50 against the start: {points}"


def _print_energy(runs: Sequence[AnyRun]) -> None:
    told = {_energy(run.energy) for run in runs}
    if len(told) == 1:
        click.echo(f"energy: {told.pop()}")
    else:
        for run in runs:
            click.echo(f"energy of {run.bundle.name} in {run.runtime.runtime}: {_energy(run.energy)}")
    for run in runs:
        if run.modelled_energy is not None:
            click.echo(f"modelled energy of {run.bundle.name}: {_energy(run.modelled_energy)}")


def _energy(record: EnergyRecord) -> str:
    if record.per_inference_j is None:
        return f"{record.method} ({'; '.join(record.notes)})"
    error = "" if record.uncertainty_j is None else f" ± {record.uncertainty_j * 1e3:.3g} mJ"
    gross = (
        ""
        if record.gross_j is None or not record.inferences
        else f", {record.gross_j / record.inferences * 1e3:.3g} mJ gross"
    )
    tokens = ""
    if record.prefill_j_per_token is not None and record.decode_j_per_token is not None:
        read, written = record.prefill_j_per_token * 1e3, record.decode_j_per_token * 1e3
        tokens = f"; {read:.3g} mJ a token read, {written:.3g} mJ a token written"
    where = "" if record.sensor is None else f", {record.scope}, {record.sensor}"
    doubt = "" if record.reliable or not record.windows else " (not to be relied on)"
    net = f"{record.per_inference_j * 1e3:.3g} mJ{error} an inference net of idle"
    return f"{record.method}, {net}{gross}{tokens}{where}{doubt}"


def _warnings(runs: Sequence[AnyRun]) -> Iterator[str]:
    for run in runs:
        name = f"{run.bundle.name} in {run.runtime.runtime}"
        if run.stopped is not None:
            yield f"{name} was stopped: {run.stopped}"
        if run.evidence != "measured":
            yield f"{name} was {run.evidence}, so its times mean nothing: {run.evidence_reason}."
        if run.background is not None and run.background.others_cores_mean > _BUSY_CORES:
            yield f"other processes took {run.background.others_cores_mean:.1f} cores on average while it measured."
        if run.profile is not None and not run.profile.match:
            yield run.profile.statement
