"""Why two runs are not alike in more than in what is compared."""

from __future__ import annotations

from collections.abc import Iterator

from edgelm_runtimes.machine import MachineFacts

from edgelm.bench.context import Conditions
from edgelm.bench.facts import machine_name
from edgelm.bench.generation_run import GenerationRun
from edgelm.bench.run import Run

__all__ = ["comparability"]

# Between an idle board and a warm one lie tens of degrees; a few are the weather.
_WARMER_C = 10.0
# Half a core of someone else's work, on a board of four, is what a governor and a scheduler answer to.
_BUSIER_CORES = 0.5


def comparability(first: Run | GenerationRun, second: Run | GenerationRun) -> tuple[str, ...]:
    """Return the reasons why a difference between two runs need not be one of what was measured; none is ().

    A different bundle, recipe, format or runtime is no such reason: that is what is compared. A different version of the
    same runtime is.

    Args:
        first: A run.
        second: Another one.
    """
    return tuple(_reasons(first, second))


def _reasons(first: Run | GenerationRun, second: Run | GenerationRun) -> Iterator[str]:
    if first.evidence != second.evidence:
        yield f"one is {first.evidence}, the other {second.evidence}"
    if _hardware(first.machine) != _hardware(second.machine):
        yield f"different machines: {machine_name(first.machine)} and {machine_name(second.machine)}"
        return  # of different machines, all that follows differs anyhow
    yield from _versions(first, second)
    yield from _settings(first, second)
    modes = [_power_mode(run) for run in (first, second)]
    if modes[0] != modes[1]:
        yield f"different power modes: {modes[0]} and {modes[1]}"
    yield from _heat(first, second)
    others = [0.0 if run.background is None else run.background.others_cores_mean for run in (first, second)]
    if abs(others[0] - others[1]) > _BUSIER_CORES:
        yield f"other processes took {others[0]:.1f} cores beside one and {others[1]:.1f} beside the other"
    if first.energy.scope != second.energy.scope and None not in (first.energy.scope, second.energy.scope):
        yield f"their energies are of different scopes: {first.energy.scope} and {second.energy.scope}"


def _versions(first: Run | GenerationRun, second: Run | GenerationRun) -> Iterator[str]:
    one, other = first.runtime, second.runtime
    if one.runtime == other.runtime and one.runtime_version != other.runtime_version:
        yield f"different versions of {one.runtime}: {one.runtime_version} and {other.runtime_version}"
    for name in ("edgelm", "numpy", "tokenizers"):
        versions = first.packages.get(name), second.packages.get(name)
        if versions[0] != versions[1]:
            yield f"different versions of {name}: {versions[0] or 'none'} and {versions[1] or 'none'}"
    if first.machine.kernel != second.machine.kernel:
        yield f"different kernels: {first.machine.kernel} and {second.machine.kernel}"
    if one.threads != other.threads:
        yield f"different numbers of threads: {one.threads} and {other.threads}"


def _settings(first: Run | GenerationRun, second: Run | GenerationRun) -> Iterator[str]:
    if first.settings.mode != second.settings.mode:
        yield f"different modes: {first.settings.mode} and {second.settings.mode}"
    if isinstance(first, Run) and isinstance(second, Run):
        one, other = first.settings, second.settings
        if (one.inputs, one.input_count, one.truncated_inputs) != (
            other.inputs,
            other.input_count,
            other.truncated_inputs,
        ):
            yield "different inputs"
        if not (one.warm_up_settled and other.warm_up_settled):
            yield "not both had warmed up"
    elif isinstance(first, GenerationRun) and isinstance(second, GenerationRun):
        amounts = [(s.settings.depth, s.settings.prefill_tokens, s.settings.decode_tokens) for s in (first, second)]
        if amounts[0] != amounts[1]:
            yield "different depths or numbers of tokens"
    else:
        yield "one is a language model's run and the other is not"
    for name, run in (("first", first), ("second", second)):
        if run.stopped is not None:
            yield f"the {name} was stopped: {run.stopped}"


def _heat(first: Run | GenerationRun, second: Run | GenerationRun) -> Iterator[str]:
    hottest = [_hottest(run.before) for run in (first, second)]
    if hottest[0] is not None and hottest[1] is not None and abs(hottest[0] - hottest[1]) > _WARMER_C:
        yield f"they began at different temperatures: {hottest[0]:.0f} °C and {hottest[1]:.0f} °C"
    limits = [_limits(run) for run in (first, second)]
    if limits[0] != limits[1]:
        told = [", ".join(sorted(limit)).replace("_", " ") or "none" for limit in limits]
        yield f"different limits of the clock: {told[0]} and {told[1]}"


def _hardware(machine: MachineFacts) -> tuple[object, ...]:
    return (
        machine.device_model,
        machine.cpu_model,
        machine.architecture,
        machine.logical_cores,
        machine.memory_total_bytes,
    )


def _power_mode(run: Run | GenerationRun) -> str:
    """Return who sets the clocks and how high they may go."""
    policies = run.machine.frequency_policies
    told = [
        f"{policy.governor or 'no governor'} up to {policy.max_hz / 1e9:.2f} GHz"
        if policy.max_hz
        else policy.governor or "unknown"
        for policy in policies
    ]
    return ", ".join(dict.fromkeys(told)) or "unknown"


def _hottest(conditions: Conditions | None) -> float | None:
    zones = () if conditions is None else conditions.thermal_zones
    return max((zone.temperature_c for zone in zones), default=None)


def _limits(run: Run | GenerationRun) -> frozenset[str]:
    """Return every limit that was seen at work: before, after and meanwhile."""
    states = [
        state.throttling for state in (run.before, run.after) if state is not None and state.throttling is not None
    ]
    seen = [limit for state in states for limit in state.now]
    return frozenset([*seen, *(limit for point in run.timeline for limit in point.limits or ())])
