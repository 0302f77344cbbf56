"""The benchmark of language models: time to first token, prefill and decode tokens a second, at several depths of the cache.

As in `edgelm.bench.measure`, every (bundle, runtime) pair has a process of its own, and they take turns: here of one
repetition (a prompt and its answer), in an order drawn anew for each round.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median

import edgelm_device_profiles as device_profiles
from edgelm_runtimes.machine import MachineFacts, machine_facts

from edgelm.bench.context import Conditions, ProfileFacts
from edgelm.bench.facts import bundle_facts, installed_versions, profile_facts
from edgelm.bench.generation_run import (
    GENERATION_FORMAT,
    GENERATION_SCHEMA_VERSION,
    GenerationResults,
    GenerationRun,
    GenerationSamples,
    GenerationSettings,
)
from edgelm.bench.generation_worker import Generate, Generated, Opened, OpenModel
from edgelm.bench.measure import Progress
from edgelm.bench.statistics import percentile, percentile_if_enough
from edgelm.bench.target import ProcessTarget
from edgelm.bundle import Bundle, open_bundle
from edgelm.errors import InputError
from edgelm.meters.record import not_measured

__all__ = ["benchmark_generation"]


@dataclass
class _Lane:
    """One bundle in one runtime while it is measured."""

    bundle: Bundle
    target: ProcessTarget
    request: OpenModel
    opened: Opened | None = None
    done: dict[int, list[Generated]] = field(default_factory=dict)


def benchmark_generation(
    paths: Sequence[str | Path] | str | Path,
    *,
    runtime: str | Sequence[str] | None = None,
    profile: str | None = None,
    threads: int | None = None,
    prefill_tokens: int = 512,
    decode_tokens: int = 128,
    depths: Sequence[int] = (0,),
    repetitions: int = 5,
    progress: Progress = lambda step, done, total: None,
) -> list[GenerationRun]:
    """Measure language models on this machine, each in each runtime and at each depth, in turns.

    A first repetition of each is not counted: it warms caches and clocks up.

    Args:
        paths: One bundle or several.
        runtime: One runtime or several; None takes the first of each bundle that is installed.
        profile: The device that the numbers are wanted for, as of `edgelm.bench.benchmark`.
        threads: Of the runtime; None lets edgelm choose.
        prefill_tokens: Of the prompt.
        decode_tokens: Of the answer, at least 2.
        depths: Positions that the cache holds before the prompt.
        repetitions: Of each.
        progress: Called with a step, how much of it is done, and how much there is.

    Returns:
        In the order of `paths`, the runtimes, and the depths.

    Raises:
        InputError: A number makes no sense, or more tokens are asked for than a context holds.
        BundleError: A bundle cannot be opened.
        RuntimeUnavailableError: A runtime is not installed, or refuses a bundle.
        ExecutionError: A runtime failed or crashed.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    names: Sequence[str | None] = [runtime] if runtime is None or isinstance(runtime, str) else runtime
    asked = _Asked(threads, prefill_tokens, decode_tokens, tuple(depths), repetitions)
    asked.check()
    machine, detection = machine_facts(), device_profiles.detect()
    wanted = profile or detection.profile
    facts = None if wanted is None else profile_facts(device_profiles.load(wanted), detection, machine)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        bundles = [(path, stack.enter_context(open_bundle(path))) for path in files]
        pairs = [(path, bundle, name) for path, bundle in bundles for name in names or (None,)]
        lanes = [_open_lane(stack, Path(path), bundle, name, threads) for path, bundle, name in pairs]
        _load(lanes, asked, progress)
        _measure(lanes, asked, progress)
        return [
            _run(lane, depth, asked, len(lanes), started, machine, facts) for lane in lanes for depth in asked.depths
        ]


@dataclass(frozen=True)
class _Asked:
    threads: int | None
    prefill_tokens: int
    decode_tokens: int
    depths: tuple[int, ...]
    repetitions: int

    def check(self) -> None:
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


def _open_lane(
    stack: contextlib.ExitStack, path: Path, bundle: Bundle, runtime: str | None, threads: int | None
) -> _Lane:
    name = bundle.manifest.name
    if bundle.manifest.task != "generate":
        raise InputError(f"{name} does not generate: measure it without -p, -d and --depth.")
    target = ProcessTarget(name if runtime is None else f"{name} in {runtime}", module="edgelm.bench.generation_worker")
    stack.callback(target.close)
    return _Lane(bundle, target, OpenModel(path=str(path), runtime=runtime, threads=threads))


def _load(lanes: Sequence[_Lane], asked: _Asked, tell: Progress) -> None:
    for index, lane in enumerate(lanes):
        tell("load", index, len(lanes))
        lane.opened = lane.target.ask(lane.request, Opened)
        if asked.positions > lane.opened.context_length:
            raise InputError(
                f"{lane.bundle.manifest.name} holds {lane.opened.context_length} positions, and {asked.positions} are "
                "needed: ask for fewer tokens or less depth, or convert it with a longer --sequence-length."
            )
    tell("load", len(lanes), len(lanes))


def _measure(lanes: Sequence[_Lane], asked: _Asked, tell: Progress) -> None:
    """Let each lane repeat at each depth, in an order drawn anew for each round; the first round is not counted."""
    generator = random.Random()  # noqa: S311 - the order is no secret
    turns = [(lane, depth) for lane in lanes for depth in asked.depths]
    for round_number in range(asked.repetitions + 1):
        generator.shuffle(turns)
        for done, (lane, depth) in enumerate(turns, round_number * len(turns) + 1):
            request = Generate(depth=depth, prefill_tokens=asked.prefill_tokens, decode_tokens=asked.decode_tokens)
            told = lane.target.ask(request, Generated)
            if round_number:
                lane.done.setdefault(depth, []).append(told)
            tell("measure", done, (asked.repetitions + 1) * len(turns))


def _run(
    lane: _Lane,
    depth: int,
    asked: _Asked,
    lanes: int,
    started: str,
    machine: MachineFacts,
    profile: ProfileFacts | None,
) -> GenerationRun:
    opened, done = lane.opened, lane.done[depth]
    if opened is None:
        raise ValueError("a lane was measured and not opened")
    artifact = next(artifact for artifact in lane.bundle.manifest.artifacts if artifact.file == opened.artifact_file)
    samples = GenerationSamples(
        prefill_s=tuple(told.prefill_s for told in done), decode_s=tuple(told.decode_s for told in done)
    )
    settings = GenerationSettings(
        mode="quick",
        threads=asked.threads,
        prefill_tokens=asked.prefill_tokens,
        decode_tokens=asked.decode_tokens,
        depth=depth,
        repetitions=asked.repetitions,
        alternated_with=lanes * len(asked.depths) - 1,
        order_seed=None,
        resumed=0,
    )
    return GenerationRun(
        format=GENERATION_FORMAT,
        schema_version=GENERATION_SCHEMA_VERSION,
        id=secrets.token_hex(8),
        started=started,
        session=started,
        evidence="executed" if machine.emulated_on else "measured",
        evidence_reason="of the kernel's architecture",
        stopped=None,
        bundle=bundle_facts(lane.bundle, artifact),
        runtime=opened.facts,
        machine=machine,
        profile=profile,
        before=Conditions.of(machine),
        after=None,
        settings=settings,
        results=_results(samples, settings, opened, done[-1].peak_memory_bytes),
        energy=not_measured("no meter was asked for"),
        modelled_energy=None,
        background=None,
        timeline=(),
        sustained=None,
        comparisons=(),
        packages=installed_versions(),
        samples=samples,
    )


def _results(
    samples: GenerationSamples, settings: GenerationSettings, opened: Opened, peak_memory_bytes: int | None
) -> GenerationResults:
    ordered = sorted(chain.from_iterable(samples.decode_s))
    prefill = median(samples.prefill_s)
    return GenerationResults(
        ttft_s=prefill,
        prefill_tokens_per_s=settings.prefill_tokens / prefill,
        decode_tokens_per_s=median(len(tokens) / sum(tokens) for tokens in samples.decode_s),
        inter_token_p50_s=percentile(ordered, 500),
        inter_token_p90_s=percentile_if_enough(ordered, 900),
        inter_token_p99_s=percentile_if_enough(ordered, 990),
        load_s=opened.load_s,
        baseline_memory_bytes=opened.baseline_memory_bytes,
        peak_memory_bytes=peak_memory_bytes,
    )
