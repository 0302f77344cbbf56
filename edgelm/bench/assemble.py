"""From a lane that was measured to its run."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from edgelm_device_profiles import DeviceProfile
from edgelm_runtimes.machine import MachineFacts

from edgelm.bench.comparability import comparability
from edgelm.bench.comparison import CONFIDENCE, MARGIN, paired_ratio, verdict_of
from edgelm.bench.context import Conditions, ProfileFacts
from edgelm.bench.evidence import find_evidence
from edgelm.bench.facts import bundle_facts, installed_versions
from edgelm.bench.findings import Background, Comparison, TimelinePoint
from edgelm.bench.generation_run import GenerationRun
from edgelm.bench.lanes import Asked, Lane
from edgelm.bench.mlperf import mlperf_fields
from edgelm.bench.realtime import real_time
from edgelm.bench.run import FORMAT, SCHEMA_VERSION, Run, Samples, Settings
from edgelm.bench.summary import join, summarise
from edgelm.bench.sustained import SteadyRule, sustained
from edgelm.bench.timeline import Work
from edgelm.bundle import Artifact, Bundle
from edgelm.errors import MeterError
from edgelm.meters import EnergyRecord, modelled, not_measured

__all__ = ["Surroundings", "artifact_of", "blocks_of", "compared", "comparison_with", "modelled_energy", "run_of"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where and beside what all lanes were measured; attributes are those of `edgelm.bench.Run`."""

    machine: MachineFacts
    profile: ProfileFacts | None
    after: Conditions
    background: Background | None
    timeline: tuple[TimelinePoint, ...]


def run_of(
    lane: Lane,
    asked: Asked,
    around: Surroundings,
    *,
    others: int,
    stopped: str | None,
    model: DeviceProfile | None,
    no_energy: str,
    rule: SteadyRule,
) -> Run:
    """Return the run of a lane that has at least one turn.

    Args:
        lane: What was measured.
        asked: How.
        around: Where.
        others: Lanes beside it.
        stopped: Why all of them ended early; None where they did not.
        model: The profile whose power the modelled energy is made of; None where nobody asked for one.
        no_energy: Why its energy was not measured, where it was not.
        rule: What counts as steady.
    """
    if lane.loaded is None or lane.warmed_up is None:
        raise ValueError("a lane has turns and was not loaded")
    samples = join([turn.samples for turn in lane.turns])
    evidence = find_evidence(around.machine, lane.loaded.facts)
    times = None
    if asked.mode == "realtime" and asked.rate_per_s is not None:
        times = real_time(
            samples,
            arrived=max(lane.arrived, lane.queries),
            rate_per_s=asked.rate_per_s,
            arrivals=asked.arrivals,
            deadline_s=asked.deadline_s,
        )
    results = summarise(
        samples, loaded=lane.loaded, peak_memory_bytes=lane.turns[-1].peak_memory_bytes, deadline_s=asked.deadline_s
    )
    energy = lane.energy or not_measured(no_energy)
    return Run(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        id=secrets.token_hex(8),
        session=asked.session,
        started=asked.started,
        evidence=evidence.level,
        evidence_reason=evidence.reason,
        stopped=lane.stopped or stopped,
        bundle=bundle_facts(lane.bundle, artifact_of(lane.bundle, lane.loaded.artifact_file)),
        runtime=lane.loaded.facts,
        machine=around.machine,
        profile=around.profile,
        before=Conditions.of(around.machine),
        after=around.after,
        settings=_settings(lane, asked, others),
        results=results if times is None else replace(results, deadline_hit_rate=times.hit_rate),
        energy=energy,
        modelled_energy=modelled_energy(model, around.profile, lane.seconds, lane.queries),
        background=around.background,
        timeline=around.timeline,
        sustained=sustained(around.timeline, _work(samples), rule) if asked.mode == "sustained" else None,
        realtime=times,
        mlperf=_mlperf(lane, samples) if asked.mode == "mlperf" else None,
        comparisons=(),
        packages=installed_versions(),
        samples=samples,
    )


def compared(runs: Sequence[Run]) -> list[Run]:
    """Return runs of one session, each but the first with its comparison with the first."""
    if not runs or runs[0].samples.block is None:
        return list(runs)
    base = blocks_of(runs[0].samples.block, runs[0].samples.latency_s)
    done = [runs[0]]
    for run in runs[1:]:
        comparison = None
        if run.samples.block is not None:
            own = blocks_of(run.samples.block, run.samples.latency_s)
            comparison = comparison_with(runs[0], run, base, own)
        done.append(run if comparison is None else replace(run, comparisons=(comparison,)))
    return done


def comparison_with(
    other: Run | GenerationRun, run: Run | GenerationRun, base: dict[int, list[float]], own: dict[int, list[float]]
) -> Comparison:
    """Return how a run stands to another one of its session.

    Args:
        other: The one that it is compared with.
        run: The one that the comparison is of.
        base: The other's times by round.
        own: The run's times by round.
    """
    found = paired_ratio(own, base)
    return Comparison(
        with_id=other.id,
        with_name=f"{other.bundle.name} in {other.runtime.runtime}",
        quantity="latency" if isinstance(run, Run) else "token latency",
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        confidence=CONFIDENCE,
        blocks=found.blocks,
        margin=MARGIN,
        verdict=verdict_of(found),
        caveats=comparability(other, run),
    )


def blocks_of(block: Sequence[int], latency_s: Sequence[float]) -> dict[int, list[float]]:
    """Return latencies by their round."""
    found: dict[int, list[float]] = {}
    for number, latency in zip(block, latency_s, strict=True):
        found.setdefault(number, []).append(latency)
    return found


def modelled_energy(
    model: DeviceProfile | None, profile: ProfileFacts | None, busy_s: float, inferences: int
) -> EnergyRecord | None:
    """Return what the power of a profile makes of a time; None where nobody asked, and the reason where it cannot be.

    Args:
        model: The profile.
        profile: Whether this machine is it: a time of another one says nothing about its energy.
        busy_s: How long it was at work.
        inferences: How often it ran.
    """
    if model is None:
        return None
    if profile is None or not profile.match:
        return not_measured(f"the times are not those of {model.title}, so its power makes no energy of them")
    try:
        return modelled(model, busy_s, inferences)
    except MeterError as error:
        return not_measured(str(error))


def artifact_of(bundle: Bundle, file: str) -> Artifact:
    """Return the record of a file of a bundle."""
    return next(artifact for artifact in bundle.manifest.artifacts if artifact.file == file)


def _settings(lane: Lane, asked: Asked, others: int) -> Settings:
    if lane.loaded is None or lane.warmed_up is None:
        raise ValueError("a lane has turns and was not loaded")
    truncated = len(set(chain.from_iterable(turn.truncated for turn in lane.turns)))
    before = 0 if lane.earlier is None else lane.earlier.settings.truncated_inputs
    return Settings(
        mode=asked.mode,
        threads=asked.threads,
        queries=asked.amount.queries,
        seconds=asked.amount.seconds,
        deadline_s=asked.deadline_s,
        inputs="given" if asked.texts_given else "golden",
        input_count=lane.loaded.input_count,
        truncated_inputs=max(truncated, before),
        warm_up_queries=lane.warmed_up.queries,
        warm_up_settled=lane.warmed_up.settled,
        alternated_with=others,
        order_seed=asked.seed,
        resumed=0 if lane.earlier is None else lane.earlier.settings.resumed + 1,
    )


def _mlperf(lane: Lane, samples: Samples) -> dict[str, str | int | float | bool]:
    return mlperf_fields(
        samples, name=lane.bundle.manifest.name, seconds=lane.seconds, energy_j=lane.energy_per_window_j
    )


def _work(samples: Samples) -> list[Work]:
    return [(at, took, None) for at, took in zip(samples.at_s or (), samples.latency_s, strict=False)]
