"""What must be known before a run's numbers are believed."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.bench import GenerationRun, Run
from edgelm.report.figures import Result
from edgelm.report.foreign import ForeignRun
from edgelm.report.rows import Row

__all__ = ["cautions_of", "warnings_of"]

# A 1-minute load above this share of the cores means that others wanted them too.
_BUSY_SHARE = 0.5
# Half a core of someone else's work, over the whole measurement.
_BUSY_CORES = 0.5


def warnings_of(result: Result) -> tuple[str, ...]:
    """Return what a reader must know before believing a run's numbers, a sentence each."""
    if isinstance(result, ForeignRun):
        return (f"Measured by {result.source}, not by edgelm: {'; '.join(result.notes) or 'as that tool states it'}.",)
    warnings = []
    if result.evidence == "executed":
        where = f" on {result.machine.emulated_on}" if result.machine.emulated_on else ""
        warnings.append(f"Executed under emulation{where}: its timings mean nothing and are left out.")
    elif result.evidence == "analysed":
        warnings.append(f"Analysed, never run ({result.evidence_reason}): it has no timings.")
    if result.stopped is not None:
        done = (
            f"{result.results.queries:,} queries"
            if isinstance(result, Run)
            else f"{len(result.samples.prefill_s)} repetitions"
        )
        warnings.append(f"Stopped after {done}: {result.stopped}.")
    if isinstance(result, Run):
        warnings += _of_settings(result)
    warnings += _of_machine(result)
    if result.energy.method == "measured" and result.energy.windows and not result.energy.reliable:
        warnings.append(f"The energy is not to be relied on, and left out: {'; '.join(result.energy.notes)}.")
    return (*warnings, *result.runtime.notes, *result.machine.notes)


def cautions_of(rows: Sequence[Row]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the warnings of several runs, each once, with the numbers of the runs that it is about."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for warning in warnings_of(row.result):
            found.setdefault(warning, []).append(row.number)
    return tuple((warning, tuple(numbers)) for warning, numbers in found.items())


def _of_settings(run: Run) -> list[str]:
    settings = run.settings
    warnings = []
    if not settings.warm_up_settled:
        warnings.append(f"The p50 had not settled after {settings.warm_up_queries:,} warm-up queries.")
    if settings.truncated_inputs:
        warnings.append(
            f"{settings.truncated_inputs:,} of {settings.input_count:,} inputs were cut to the model's length."
        )
    return warnings


def _of_machine(run: Run | GenerationRun) -> list[str]:
    warnings = []
    cores = len(run.machine.usable_cores or ()) or run.machine.logical_cores
    before = run.before
    busy_before = before is not None and before.load_average_1min is not None and before.load_average_1min
    if run.background is not None:
        if run.background.others_cores_mean > _BUSY_CORES:
            warnings.append(f"Other processes took {run.background.others_cores_mean:.1f} cores meanwhile.")
    elif busy_before and cores and busy_before > _BUSY_SHARE * cores:
        warnings.append(f"The machine was busy before: a load average of {busy_before:.2f} on {cores} usable cores.")
    for moment, state in (("before", run.before), ("after", run.after)):
        if state is not None and state.throttling is not None and state.throttling.now:
            warnings.append(f"The clock was limited {moment} the measurement: {_words(state.throttling.now)}.")
    meanwhile = dict.fromkeys(limit for point in run.timeline for limit in point.limits or ())
    if meanwhile:
        warnings.append(f"The clock was limited during the measurement: {_words(tuple(meanwhile))}.")
    return warnings


def _words(limits: Sequence[str]) -> str:
    return ", ".join(limit.replace("_", " ") for limit in limits)
