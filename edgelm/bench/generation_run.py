"""A run of a language model: how fast it reads a prompt and writes an answer, on one machine, at one depth of the cache.

None means that something was not measured. Times are seconds, sizes bytes; the rows of `GenerationRun.llama_bench_rows` are
in nanoseconds, as llama-bench writes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import dacite
from edgelm_runtimes.machine import MachineFacts
from edgelm_runtimes.program import ProgramFacts

from edgelm.bench.context import BundleFacts, Conditions, ProfileFacts
from edgelm.bench.findings import Background, Comparison, Evidence, Mode, StoredSamples, Sustained, TimelinePoint
from edgelm.bench.run import STRICT, check_version, parse_json, to_line
from edgelm.bench.upgrade import upgrade_generation_run
from edgelm.errors import InputError
from edgelm.meters.record import EnergyRecord

__all__ = [
    "GENERATION_FORMAT",
    "GENERATION_SCHEMA_VERSION",
    "GenerationResults",
    "GenerationRun",
    "GenerationSamples",
    "GenerationSettings",
]

GENERATION_FORMAT = "edgelm-generation-run"
GENERATION_SCHEMA_VERSION = 2

_NANOSECONDS = 1e9


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What was asked of the model in each repetition.

    Attributes:
        mode: As of `edgelm.bench.Settings`; ``mlperf`` and ``realtime`` are for other models.
        threads: As asked for; None left it to edgelm.
        prefill_tokens: Tokens of the prompt, drawn at random.
        decode_tokens: Tokens that were then written, each the likeliest after the last; nothing ends an answer early.
        depth: Positions that the cache held before the prompt.
        repetitions: Of all that.
        alternated_with: Other bundles, runtimes or depths that were measured in turn with this one.
        order_seed: Of the order of the turns; None where an earlier edgelm did not keep it.
        resumed: How often it was stopped and taken up again.
    """

    mode: Mode
    threads: int | None
    prefill_tokens: int
    decode_tokens: int
    depth: int
    repetitions: int
    alternated_with: int
    order_seed: int | None
    resumed: int


@dataclass(frozen=True, kw_only=True)
class GenerationSamples:
    """Every repetition.

    Attributes:
        prefill_s: From the prompt's ids to the scores of the first new token.
        decode_s: Of each repetition, the times of the tokens after the first, one by one: scores, choice and the next step.
        block: Of each repetition, the round of turns that it was measured in, from 0.
        at_s: Of each repetition, when it began, since the measurement began.
    """

    prefill_s: tuple[float, ...]
    decode_s: tuple[tuple[float, ...], ...]
    block: tuple[int, ...] | None = None
    at_s: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationResults:
    """What came out. A percentile is a nearest rank, and None with too few tokens to expect one above it.

    Attributes:
        ttft_s: Time to first token, median of the repetitions: prefill and the choice of the first token. Without the
            tokenizer, which takes microseconds.
        prefill_tokens_per_s: Prompt tokens by the median time.
        decode_tokens_per_s: Tokens a second while decoding, median of the repetitions.
        inter_token_p50_s: Of all tokens of all repetitions.
        load_s: From a path to a program that can answer, in a fresh process, the import of the runtime included.
        baseline_memory_bytes: Most memory resident before loading.
        peak_memory_bytes: Most memory resident in the whole life of the process.
    """

    ttft_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    inter_token_p50_s: float
    inter_token_p90_s: float | None
    inter_token_p99_s: float | None
    load_s: float
    baseline_memory_bytes: int | None
    peak_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GenerationRun:
    """One language model, measured in one runtime on one machine, at one depth.

    Attributes:
        format: ``edgelm-generation-run``.
        schema_version: Of this record.
        id: 16 random hexadecimal digits.
        session: As of `edgelm.bench.Run`.
        started: ISO 8601, UTC.
        evidence: As of `edgelm.bench.Run`.
        evidence_reason: How that is known.
        stopped: Why it ended before the repetitions or the time that were asked for; None where it did not.
        bundle: What was measured.
        runtime: What ran it.
        machine: The machine and its state before.
        profile: The device that the numbers are wanted for; None where none was named and none fits.
        before: The machine's state before; None where an earlier edgelm did not keep it.
        after: The machine's state after; likewise.
        settings: How it was measured.
        results: What came out.
        energy: As a sensor saw it; an "inference" of it is a repetition, a prompt with its answer.
        modelled_energy: As of `edgelm.bench.Run`.
        background: As of `edgelm.bench.Run`.
        timeline: As of `edgelm.bench.Run`.
        sustained: As of `edgelm.bench.Run`.
        comparisons: As of `edgelm.bench.Run`, with runs of the same depth.
        packages: Versions of edgelm and of what it stands on.
        samples: Every repetition.
    """

    format: str
    schema_version: int
    id: str
    session: str
    started: str
    evidence: Evidence
    evidence_reason: str
    stopped: str | None
    bundle: BundleFacts
    runtime: ProgramFacts
    machine: MachineFacts
    profile: ProfileFacts | None
    before: Conditions | None
    after: Conditions | None
    settings: GenerationSettings
    results: GenerationResults
    energy: EnergyRecord
    modelled_energy: EnergyRecord | None
    background: Background | None
    timeline: tuple[TimelinePoint, ...]
    sustained: Sustained | None
    comparisons: tuple[Comparison, ...]
    packages: dict[str, str]
    samples: GenerationSamples

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON-able values."""
        return asdict(self)

    @property
    def interrupted(self) -> bool:
        """Whether it ended before the repetitions or the time that were asked for."""
        return self.stopped is not None

    def to_json(self, stored: StoredSamples | None = None) -> str:
        """Return the run as one line of JSON, without a line end.

        Args:
            stored: Where the samples are, for a line that does not hold them.
        """
        return to_line(self, stored)

    @classmethod
    def from_json(cls, text: str) -> GenerationRun:
        """Read a run.

        Raises:
            InputError: It is no such run, or of a newer edgelm.
        """
        return cls.from_dict(parse_json(text))

    @classmethod
    def from_dict(cls, data: object) -> GenerationRun:
        """Read a run from the values of its JSON, strictly.

        Raises:
            InputError: It is no such run, or of a newer edgelm.
        """
        if not isinstance(data, dict) or data.get("format") != GENERATION_FORMAT:
            raise InputError("This is no run of a language model: its format is another one.")
        version = check_version(data, GENERATION_SCHEMA_VERSION)
        try:
            return dacite.from_dict(cls, upgrade_generation_run(data) if version == 1 else data, STRICT)
        except (dacite.DaciteError, TypeError, ValueError, RecursionError) as error:
            # dacite repeats the whole value, which may be a hundred thousand tokens.
            reason = str(error)[:200]
            raise InputError(f"The run does not follow its schema ({reason}): the file is damaged.") from error

    def llama_bench_rows(self) -> list[dict[str, Any]]:
        """Return two rows as llama-bench writes them with ``-o json``: the prompt's, and the answer's.

        The fields have llama-bench's names where it has them (tools/llama-bench in llama.cpp); ``n_depth`` of the answer
        counts the prompt. ``token_ns`` holds every token's time, which llama-bench leaves out.
        """
        settings, samples = self.settings, self.samples
        common = {
            "cpu_info": self.machine.cpu_model,
            "backends": f"{self.runtime.runtime} {self.runtime.runtime_version}",
            "model_filename": self.bundle.name,
            "model_type": f"{self.bundle.family} {self.bundle.recipe}",
            "model_size": self.bundle.size_bytes,
            "model_n_params": self.bundle.parameters,
            "n_threads": self.runtime.threads,
            "test_time": self.started,
        }
        prompt = _row(settings.prefill_tokens, samples.prefill_s)
        answer = _row(settings.decode_tokens - 1, tuple(sum(tokens) for tokens in samples.decode_s))
        token_ns = [[round(token * _NANOSECONDS) for token in tokens] for tokens in samples.decode_s]
        return [
            {**common, "n_prompt": settings.prefill_tokens, "n_gen": 0, "n_depth": settings.depth, **prompt},
            {
                **common,
                "n_prompt": 0,
                "n_gen": settings.decode_tokens - 1,
                "n_depth": settings.depth + settings.prefill_tokens,
                **answer,
                "token_ns": token_ns,
            },
        ]


def _row(tokens: int, seconds: tuple[float, ...]) -> dict[str, Any]:
    rates = [tokens / value for value in seconds]
    return {
        "avg_ns": round(fmean(seconds) * _NANOSECONDS),
        "stddev_ns": round(stdev(seconds) * _NANOSECONDS) if len(seconds) > 1 else 0,
        "avg_ts": fmean(rates),
        "stddev_ts": stdev(rates) if len(rates) > 1 else 0.0,
        "samples_ns": [round(value * _NANOSECONDS) for value in seconds],
        "samples_ts": rates,
    }
