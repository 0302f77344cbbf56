"""Runs, sorted by machine and speed and numbered: what every part of a report refers to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgelm_runtimes.machine import MachineFacts

from edgelm.bench import Run
from edgelm.bench.facts import machine_name
from edgelm.report.numbers import size

__all__ = ["Group", "Row", "cautions_of", "group_runs", "warnings_of"]

# A 1-minute load above this share of the cores means that others wanted them too.
_BUSY_SHARE = 0.5


@dataclass(frozen=True)
class Row:
    """One run in a report.

    Attributes:
        number: From 1; unique in the report.
        run: What it stands for.
    """

    number: int
    run: Run

    @property
    def name(self) -> str:
        """The bundle and the runtime."""
        return f"{self.run.bundle.name} in {self.run.runtime.runtime}"

    @property
    def detail(self) -> str:
        """What tells it from its neighbours."""
        runtime = self.run.runtime
        threads = "1 thread" if runtime.threads == 1 else f"{runtime.threads} threads"
        return f"{self.run.bundle.recipe} · {self.run.bundle.format} · {threads}"

    @property
    def timed(self) -> bool:
        """Whether its timings mean anything: not under emulation."""
        return self.run.evidence == "measured"


@dataclass(frozen=True)
class Group:
    """The runs of one machine: only they can be compared.

    Attributes:
        title: The machine's name.
        facts: What is known of it, in short phrases.
        statements: Sentences on runs that were wanted for another device.
        rows: The fastest first.
    """

    title: str
    facts: tuple[str, ...]
    statements: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def timed(self) -> tuple[Row, ...]:
        """Those whose timings mean something."""
        return tuple(row for row in self.rows if row.timed)


def group_runs(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Return the runs by machine, the fastest first, numbered through."""
    by_machine: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        by_machine.setdefault(_machine_key(run.machine), []).append(run)
    groups = []
    number = 1
    for members in by_machine.values():
        ordered = sorted(members, key=lambda run: (run.evidence != "measured", run.results.p50_s, run.bundle.name))
        rows = tuple(Row(number + index, run) for index, run in enumerate(ordered))
        number += len(rows)
        machine = ordered[0].machine
        statements = (run.profile.statement for run in ordered if run.profile is not None and not run.profile.match)
        groups.append(Group(machine_name(machine), _facts(machine), _unique(statements), rows))
    return tuple(groups)


def warnings_of(run: Run) -> tuple[str, ...]:
    """Return what a reader must know before believing a run's numbers, a sentence each."""
    settings, before, after = run.settings, run.before, run.after
    warnings = []
    if run.evidence == "executed":
        warnings.append(
            f"Executed under emulation on {run.machine.emulated_on}: its timings mean nothing and are left out."
        )
    if run.interrupted:
        warnings.append(f"Interrupted after {run.results.queries:,} queries.")
    if not settings.warm_up_settled:
        warnings.append(f"The p50 had not settled after {settings.warm_up_queries:,} warm-up queries.")
    if settings.truncated_inputs:
        warnings.append(
            f"{settings.truncated_inputs:,} of {settings.input_count:,} inputs were cut to the model's length."
        )
    cores = len(run.machine.usable_cores or ()) or run.machine.logical_cores
    if before.load_average_1min is not None and cores and before.load_average_1min > _BUSY_SHARE * cores:
        warnings.append(
            f"The machine was busy before: a load average of {before.load_average_1min:.2f} on {cores} usable cores."
        )
    for moment, state in (("before", before), ("after", after)):
        if state.throttling is not None and state.throttling.now:
            limits = ", ".join(limit.replace("_", " ") for limit in state.throttling.now)
            warnings.append(f"The clock was limited {moment} the measurement: {limits}.")
    return (*warnings, *run.runtime.notes, *run.machine.notes)


def cautions_of(rows: Sequence[Row]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the warnings of several runs, each once, with the numbers of the runs that it is about."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for warning in warnings_of(row.run):
            found.setdefault(warning, []).append(row.number)
    return tuple((warning, tuple(numbers)) for warning, numbers in found.items())


def _machine_key(machine: MachineFacts) -> tuple[object, ...]:
    return (
        machine.device_model,
        machine.cpu_model,
        machine.architecture,
        machine.logical_cores,
        machine.memory_total_bytes,
        machine.emulated_on,
    )


def _facts(machine: MachineFacts) -> tuple[str, ...]:
    cores = len(machine.usable_cores) if machine.usable_cores is not None else machine.logical_cores
    clock = max((policy.max_hz or 0 for policy in machine.frequency_policies), default=0)
    governors = _unique(policy.governor or "" for policy in machine.frequency_policies)
    facts = (
        machine.cpu_model if machine.device_model else None,
        machine.architecture,
        f"{cores} of {machine.logical_cores} cores usable" if machine.logical_cores else None,
        f"up to {clock / 1e9:.2f} GHz" if clock else None,
        f"governor {', '.join(governors)}" if governors else None,
        f"{size(machine.memory_total_bytes)} memory" if machine.memory_total_bytes else None,
        machine.os_name,
        f"Linux {machine.kernel}" if machine.kernel else None,
        f"Python {machine.python_version}",
        f"virtual machine: {machine.virtual_machine}" if machine.virtual_machine else None,
        f"container: {machine.container}" if machine.container else None,
        f"emulated on {machine.emulated_on}" if machine.emulated_on else None,
    )
    return tuple(fact for fact in facts if fact)


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
