"""Runs, sorted by machine and speed and numbered: what every part of a report refers to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from edgelm_runtimes.machine import MachineFacts

from edgelm.bench import GenerationRun
from edgelm.bench.facts import machine_name
from edgelm.report.battery import battery_of
from edgelm.report.figures import NotMeasured, Result, Value, figures_of
from edgelm.report.foreign import ForeignRun
from edgelm.report.numbers import size

__all__ = ["Group", "Row", "group_runs"]


@dataclass(frozen=True, eq=False)
class Row:
    """One run in a report.

    Attributes:
        number: From 1; unique in the report.
        result: What it stands for.
        figures: Its figures by name, or why they are not there.
    """

    number: int
    result: Result
    figures: Mapping[str, Value]

    def value(self, name: str) -> float | None:
        """Return a figure; None where it was not measured."""
        value = self.figures[name]
        return None if isinstance(value, NotMeasured) else value

    def reason(self, name: str) -> str:
        """Return why a figure is not there; empty where it is."""
        value = self.figures[name]
        return value.reason if isinstance(value, NotMeasured) else ""

    @property
    def model(self) -> str:
        """The bundle, or what another tool calls the model."""
        return self.result.model if isinstance(self.result, ForeignRun) else self.result.bundle.name

    @property
    def recipe(self) -> str:
        """How the weights are stored."""
        return self.result.recipe if isinstance(self.result, ForeignRun) else self.result.bundle.recipe

    @property
    def runtime(self) -> str:
        """What ran it."""
        return self.result.runtime if isinstance(self.result, ForeignRun) else self.result.runtime.runtime

    @property
    def threads(self) -> int | None:
        """Threads of the runtime; None where another tool does not say."""
        return self.result.threads if isinstance(self.result, ForeignRun) else self.result.runtime.threads

    @property
    def name(self) -> str:
        """The bundle and the runtime."""
        return f"{self.model} in {self.runtime}"

    @property
    def detail(self) -> str:
        """What tells it from its neighbours."""
        file_format = None if isinstance(self.result, ForeignRun) else self.result.bundle.format
        threads = None if self.threads is None else "1 thread" if self.threads == 1 else f"{self.threads} threads"
        depth = None if self.depth is None else f"depth {self.depth:,}"
        return " · ".join(part for part in (self.recipe, file_format, threads, depth) if part)

    @property
    def depth(self) -> int | None:
        """Tokens in the cache before; None of models that answer."""
        if isinstance(self.result, GenerationRun):
            return self.result.settings.depth
        return self.result.depth if isinstance(self.result, ForeignRun) else None

    @property
    def generates(self) -> bool:
        """Whether it is a language model's."""
        return self.result.generates if isinstance(self.result, ForeignRun) else isinstance(self.result, GenerationRun)

    @property
    def evidence(self) -> str:
        """``measured``, ``executed`` or ``analysed``; of another tool, that it says so."""
        return "measured" if isinstance(self.result, ForeignRun) else self.result.evidence

    @property
    def source(self) -> str | None:
        """The tool that measured it; None of edgelm's own."""
        return self.result.source if isinstance(self.result, ForeignRun) else None

    @property
    def timed(self) -> bool:
        """Whether its timings mean anything: not under emulation."""
        return self.evidence == "measured"

    @property
    def energy_scope(self) -> str | None:
        """What the energy meter saw; None without one."""
        return None if isinstance(self.result, ForeignRun) else self.result.energy.scope

    @property
    def placement(self) -> Mapping[str, int]:
        """Operators by the processor that runs them; empty where that is not recorded."""
        if isinstance(self.result, ForeignRun):
            return self.result.placement
        # Not every runtime tells, and runs of an earlier edgelm have no such field.
        found: Any = getattr(self.result, "placement", None) or getattr(self.result.runtime, "placement", None)
        return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True)
class Group:
    """The runs of one machine: only they can be compared.

    Attributes:
        title: The machine's name.
        facts: What is known of it, in short phrases.
        statements: Sentences on runs that were wanted for another device.
        rows: The fastest first; models that answer before those that write.
    """

    title: str
    facts: tuple[str, ...]
    statements: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def answers(self) -> tuple[Row, ...]:
        """The runs of models that answer, those whose timings mean something."""
        return tuple(row for row in self.rows if row.timed and not row.generates)

    @property
    def tokens(self) -> tuple[Row, ...]:
        """The runs of language models, likewise."""
        return tuple(row for row in self.rows if row.timed and row.generates)

    @property
    def untimed(self) -> tuple[Row, ...]:
        """Those whose timings mean nothing."""
        return tuple(row for row in self.rows if not row.timed)


def group_runs(results: Sequence[Result], *, battery_wh: float | None = None) -> tuple[Group, ...]:
    """Return the runs by machine, the fastest first, numbered through.

    Another tool's run joins the machine that has the name it gives, or gets a group under that name.

    Args:
        results: Runs.
        battery_wh: Of every device here; None leaves it to the devices' profiles.
    """
    members: dict[object, list[Result]] = {}
    names: dict[str, object] = {}
    own = [result for result in results if not isinstance(result, ForeignRun)]
    for run in own:
        key = _machine_key(run.machine)
        members.setdefault(key, []).append(run)
        titles = (
            run.machine.device_model,
            run.machine.cpu_model,
            run.profile.title if run.profile and run.profile.match else None,
        )
        for title in titles:
            if title:
                names.setdefault(title, key)
    for result in results:
        if isinstance(result, ForeignRun):
            members.setdefault(names.get(result.device, result.device), []).append(result)
    groups = []
    number = 1
    for group in members.values():
        rows = []
        for result in sorted(group, key=_order):
            battery = None if isinstance(result, ForeignRun) else battery_of(result, battery_wh)
            rows.append(Row(number, result, figures_of(result, battery)))
            number += 1
        groups.append(_group(tuple(rows)))
    return tuple(groups)


def _order(result: Result) -> tuple[object, ...]:
    if isinstance(result, ForeignRun):
        speed = result.figures.get("p50", inf)
        return (result.generates, True, 0, result.model, result.depth or 0, speed)
    if isinstance(result, GenerationRun):
        return (
            True,
            False,
            result.evidence != "measured",
            result.bundle.name,
            result.runtime.runtime,
            result.settings.depth,
        )
    return (False, False, result.evidence != "measured", result.results.p50_s, result.bundle.name)


def _group(rows: tuple[Row, ...]) -> Group:
    runs = [row.result for row in rows if not isinstance(row.result, ForeignRun)]
    if not runs:
        device = next(row.result.device for row in rows if isinstance(row.result, ForeignRun))
        return Group(device, ("as other tools name it; edgelm did not see it",), (), rows)
    statements = (run.profile.statement for run in runs if run.profile is not None and not run.profile.match)
    machine = runs[0].machine
    emulated = f", emulated on {machine.emulated_on}" if machine.emulated_on else ""
    return Group(machine_name(machine) + emulated, _facts(machine), _unique(statements), rows)


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
