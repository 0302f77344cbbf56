"""One language model in one runtime while it is measured, and what its repetitions come to."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import median

from edgelm_device_profiles import DeviceProfile

from edgelm.bench.assemble import Surroundings, artifact_of, comparison_with, modelled_energy
from edgelm.bench.context import Conditions
from edgelm.bench.evidence import find_evidence
from edgelm.bench.facts import bundle_facts, installed_versions
from edgelm.bench.findings import Mode
from edgelm.bench.generation_run import (
    GENERATION_FORMAT,
    GENERATION_SCHEMA_VERSION,
    GenerationResults,
    GenerationRun,
    GenerationSamples,
    GenerationSettings,
)
from edgelm.bench.generation_worker import Generated, Opened, OpenModel
from edgelm.bench.statistics import percentile, percentile_if_enough
from edgelm.bench.sustained import SteadyRule, sustained
from edgelm.bench.target import ProcessTarget
from edgelm.bench.timeline import Work
from edgelm.bundle import Bundle
from edgelm.errors import ExecutionError, InputError
from edgelm.meters import EnergyRecord, not_measured

__all__ = [
    "GenerationAsked",
    "ModelLane",
    "Repetition",
    "compared_models",
    "model_run",
    "open_model_lane",
    "work_of_models",
]


@dataclass(frozen=True, kw_only=True)
class GenerationAsked:
    """How language models are measured; attributes are those of `edgelm.bench.GenerationRun` and of its settings."""

    session: str
    started: str
    mode: Mode
    threads: int | None
    prefill_tokens: int
    decode_tokens: int
    depths: tuple[int, ...]
    repetitions: int
    seconds: float | None
    seed: int

    def check(self) -> None:
        """Refuse amounts that make no sense.

        Raises:
            InputError: One does not.
        """
        sensible = self.prefill_tokens >= 1 and self.decode_tokens >= 2 and self.repetitions >= 1
        if not sensible or not self.depths or min(self.depths) < 0:
            raise InputError(
                "A prompt has at least 1 token, an answer 2, a depth 0, and there is 1 repetition: "
                f"{self.prefill_tokens}, {self.decode_tokens}, {list(self.depths)} and {self.repetitions} were given."
            )

    @property
    def positions(self) -> int:
        """The most positions that a repetition reaches."""
        return max(self.depths) + self.prefill_tokens + self.decode_tokens


@dataclass(frozen=True)
class Repetition:
    """A prompt and its answer.

    Attributes:
        block: The round.
        at_s: When it began, since the measurement did.
        told: How long it took.
    """

    block: int
    at_s: float
    told: Generated


@dataclass
class ModelLane:
    """One language model in one runtime.

    Attributes:
        bundle: Open.
        target: Its process.
        request: How it is opened there.
        opened: What it said when it was.
        done: Its repetitions by depth.
        energy: By depth, as measured.
        earlier: The runs that this one takes up again, by depth.
        failure: Why its process cannot be asked any more.
    """

    bundle: Bundle
    target: ProcessTarget
    request: OpenModel
    opened: Opened | None = None
    done: dict[int, list[Repetition]] = field(default_factory=dict)
    energy: dict[int, EnergyRecord] = field(default_factory=dict)
    earlier: dict[int, GenerationRun] = field(default_factory=dict)
    failure: ExecutionError | None = None

    def adopt(self, run: GenerationRun) -> None:
        """Go on where an earlier run stopped."""
        samples = run.samples
        self.earlier[run.settings.depth] = run
        self.done[run.settings.depth] = [
            Repetition(
                block,
                at_s,
                Generated(
                    at_s=at_s, prefill_s=prefill, decode_s=decode, peak_memory_bytes=run.results.peak_memory_bytes
                ),
            )
            for block, at_s, prefill, decode in zip(
                samples.block or range(len(samples.prefill_s)),
                samples.at_s or (0.0,) * len(samples.prefill_s),
                samples.prefill_s,
                samples.decode_s,
                strict=True,
            )
        ]


def open_model_lane(
    stack: contextlib.ExitStack, path: Path, bundle: Bundle, runtime: str | None, threads: int | None
) -> ModelLane:
    """Start the process of a lane; it opens nothing yet, and ends with `stack`.

    Raises:
        InputError: The bundle does not generate.
    """
    name = bundle.manifest.name
    if bundle.manifest.task != "generate":
        raise InputError(f"{name} does not generate: measure it without -p, -d and --depth.")
    target = ProcessTarget(name if runtime is None else f"{name} in {runtime}", module="edgelm.bench.generation_worker")
    stack.callback(target.close)
    return ModelLane(bundle, target, OpenModel(path=str(path), runtime=runtime, threads=threads))


def work_of_models(lane: ModelLane) -> list[Work]:
    """Return when each repetition began, what a token of it took, and its tokens a second."""
    every = sorted(chain.from_iterable(lane.done.values()), key=lambda one: one.at_s)
    return [(one.at_s, median(one.told.decode_s), _rate(one.told.decode_s)) for one in every]


def model_run(
    lane: ModelLane,
    depth: int,
    asked: GenerationAsked,
    around: Surroundings,
    *,
    others: int,
    stopped: str | None,
    model: DeviceProfile | None,
    no_energy: str,
    rule: SteadyRule,
) -> GenerationRun:
    """Return the run of a lane at one depth, where it has at least one repetition.

    Args are those of `edgelm.bench.assemble.run_of`.
    """
    opened, done = lane.opened, lane.done[depth]
    if opened is None:
        raise ValueError("a lane was measured and not opened")
    evidence = find_evidence(around.machine, opened.facts)
    samples = GenerationSamples(
        prefill_s=tuple(one.told.prefill_s for one in done),
        decode_s=tuple(one.told.decode_s for one in done),
        block=tuple(one.block for one in done),
        at_s=tuple(round(one.at_s, 6) for one in done),
    )
    settings = GenerationSettings(
        mode=asked.mode,
        threads=asked.threads,
        prefill_tokens=asked.prefill_tokens,
        decode_tokens=asked.decode_tokens,
        depth=depth,
        repetitions=asked.repetitions,
        alternated_with=others,
        order_seed=asked.seed,
        resumed=lane.earlier[depth].settings.resumed + 1 if depth in lane.earlier else 0,
    )
    busy_s = sum(samples.prefill_s) + sum(chain.from_iterable(samples.decode_s))
    return GenerationRun(
        format=GENERATION_FORMAT,
        schema_version=GENERATION_SCHEMA_VERSION,
        id=secrets.token_hex(8),
        session=asked.session,
        started=asked.started,
        evidence=evidence.level,
        evidence_reason=evidence.reason,
        stopped=stopped,
        bundle=bundle_facts(lane.bundle, artifact_of(lane.bundle, opened.artifact_file)),
        runtime=opened.facts,
        machine=around.machine,
        profile=around.profile,
        before=Conditions.of(around.machine),
        after=around.after,
        settings=settings,
        results=_results(samples, settings, opened, done[-1].told.peak_memory_bytes),
        energy=lane.energy.get(depth) or not_measured(no_energy),
        modelled_energy=modelled_energy(model, around.profile, busy_s, len(done)),
        background=around.background,
        timeline=around.timeline,
        sustained=sustained(around.timeline, work_of_models(lane), rule) if asked.mode == "sustained" else None,
        comparisons=(),
        packages=installed_versions(),
        samples=samples,
    )


def compared_models(runs: Sequence[GenerationRun]) -> list[GenerationRun]:
    """Return runs of one session, each with its comparison with the first one of its depth: of the time of a token."""
    first: dict[int, GenerationRun] = {}
    done = []
    for run in runs:
        other = first.setdefault(run.settings.depth, run)
        if other is run:
            done.append(run)
        else:
            done.append(replace(run, comparisons=(comparison_with(other, run, _tokens(other), _tokens(run)),)))
    return done


def _tokens(run: GenerationRun) -> dict[int, list[float]]:
    """Return the tokens' times by round. The ids are the same for all, so the n-th token is computed behind as many."""
    found: dict[int, list[float]] = {}
    for block, tokens in zip(run.samples.block or (), run.samples.decode_s, strict=False):
        found.setdefault(block, []).extend(tokens)
    return found


def _results(
    samples: GenerationSamples, settings: GenerationSettings, opened: Opened, peak_memory_bytes: int | None
) -> GenerationResults:
    ordered = sorted(chain.from_iterable(samples.decode_s))
    prefill = median(samples.prefill_s)
    return GenerationResults(
        ttft_s=prefill,
        prefill_tokens_per_s=settings.prefill_tokens / prefill,
        decode_tokens_per_s=median(_rate(tokens) for tokens in samples.decode_s),
        inter_token_p50_s=percentile(ordered, 500),
        inter_token_p90_s=percentile_if_enough(ordered, 900),
        inter_token_p99_s=percentile_if_enough(ordered, 990),
        load_s=opened.load_s,
        baseline_memory_bytes=opened.baseline_memory_bytes,
        peak_memory_bytes=peak_memory_bytes,
    )


def _rate(tokens: Sequence[float]) -> float:
    return len(tokens) / sum(tokens)
