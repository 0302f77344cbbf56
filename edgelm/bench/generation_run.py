"""A run of a language model: how fast it reads a prompt and writes an answer, on one machine, at one depth of the cache.

None means that something was not measured. Times are seconds, sizes bytes; the rows of `GenerationRun.llama_bench_rows` are
in nanoseconds, as llama-bench writes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import dacite
from edgelm_runtimes.machine import MachineFacts
from edgelm_runtimes.program import ProgramFacts

from edgelm.bench.run import BundleFacts, Energy, ProfileFacts, parse_json
from edgelm.errors import InputError

__all__ = ["GENERATION_FORMAT", "GenerationResults", "GenerationRun", "GenerationSamples", "GenerationSettings"]

GENERATION_FORMAT = "edgelm-generation-run"
GENERATION_SCHEMA_VERSION = 1

_NANOSECONDS = 1e9


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What was asked of the model in each repetition.

    Attributes:
        threads: As asked for; None left it to edgelm.
        prefill_tokens: Tokens of the prompt, drawn at random.
        decode_tokens: Tokens that were then written, each the likeliest after the last; nothing ends an answer early.
        depth: Positions that the cache held before the prompt.
        repetitions: Of all that.
        alternated_with: Other bundles, runtimes or depths that were measured in turn with this one.
    """

    threads: int | None
    prefill_tokens: int
    decode_tokens: int
    depth: int
    repetitions: int
    alternated_with: int


@dataclass(frozen=True, kw_only=True)
class GenerationSamples:
    """Every repetition.

    Attributes:
        prefill_s: From the prompt's ids to the scores of the first new token.
        decode_s: Of each repetition, the times of the tokens after the first, one by one: scores, choice and the next step.
    """

    prefill_s: tuple[float, ...]
    decode_s: tuple[tuple[float, ...], ...]


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
        started: ISO 8601, UTC.
        evidence: As of `edgelm.bench.Run`.
        bundle: What was measured.
        runtime: What ran it.
        machine: The machine and its state before.
        profile: The device that the numbers are wanted for; None where none was named and none fits.
        settings: How it was measured.
        results: What came out.
        energy: Of one token.
        packages: Versions of edgelm and of what it stands on.
        samples: Every repetition.
    """

    format: str
    schema_version: int
    id: str
    started: str
    evidence: Literal["measured", "executed"]
    bundle: BundleFacts
    runtime: ProgramFacts
    machine: MachineFacts
    profile: ProfileFacts | None
    settings: GenerationSettings
    results: GenerationResults
    energy: Energy
    packages: dict[str, str]
    samples: GenerationSamples

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON-able values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the run as one line of JSON, without a line end."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> GenerationRun:
        """Read a run.

        Raises:
            InputError: It is no such run, or of a newer edgelm.
        """
        data = parse_json(text)
        if not isinstance(data, dict) or data.get("format") != GENERATION_FORMAT:
            raise InputError("This is no run of a language model: its format is another one.")
        if data.get("schema_version") != GENERATION_SCHEMA_VERSION:
            raise InputError(
                f"The run has schema version {data.get('schema_version')!r}, and this edgelm reads "
                f"{GENERATION_SCHEMA_VERSION}. Update edgelm."
            )
        try:
            return dacite.from_dict(cls, data, dacite.Config(strict=True, cast=[tuple]))
        except (dacite.DaciteError, TypeError, ValueError) as error:
            raise InputError(f"The run does not follow its schema ({error}).") from error

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
