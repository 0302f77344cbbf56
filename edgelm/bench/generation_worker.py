"""The process that is measured: it opens one language model in one runtime, reads prompts and writes answers.

``python -m edgelm.bench.generation_worker`` reads one request a line from stdin, and writes one reply a line to stdout.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import dacite
import numpy as np
from edgelm_runtimes.machine import peak_memory_bytes
from edgelm_runtimes.program import CausalProgram, ProgramFacts, ProgramOptions
from edgelm_runtimes.registry import choose_artifact, default_runtime, default_threads, open_causal
from numpy.typing import NDArray

from edgelm.bench.protocol import Spun
from edgelm.bench.worker import serve
from edgelm.bundle import open_bundle
from edgelm.errors import InputError

__all__ = ["Generate", "Generated", "OpenModel", "Opened", "SpinModel", "main", "repeat_once"]

_CONFIG = dacite.Config(strict=True, cast=[tuple])
_SEED = 20

Clock = Callable[[], int]


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """Open a bundle."""

    path: str
    runtime: str | None
    threads: int | None
    op: Literal["open"] = "open"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """It is open. Attributes are those of `edgelm.bench.generation_run.GenerationResults`, and what runs it."""

    facts: ProgramFacts
    artifact_file: str
    context_length: int
    load_s: float
    baseline_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Read a prompt behind so many positions, and write an answer."""

    depth: int
    prefill_tokens: int
    decode_tokens: int
    op: Literal["generate"] = "generate"


@dataclass(frozen=True, kw_only=True)
class SpinModel:
    """Do that again and again for a time, and keep nothing of it: a load for a meter.

    Attributes:
        depth: As of `Generate`.
        prefill_tokens: As of `Generate`.
        decode_tokens: As of `Generate`; None reads prompts alone.
        seconds: Begin no prompt later than this.
    """

    depth: int
    prefill_tokens: int
    decode_tokens: int | None
    seconds: float
    op: Literal["spin"] = "spin"


@dataclass(frozen=True, kw_only=True)
class Generated:
    """How long that took; `at_s` is when it began, by `time.perf_counter`."""

    at_s: float
    prefill_s: float
    decode_s: tuple[float, ...]
    peak_memory_bytes: int | None


def repeat_once(
    program: CausalProgram, request: Generate, before: int, *, clock: Clock = time.perf_counter_ns
) -> tuple[float, tuple[float, ...]]:
    """Return the seconds of a prompt, and of each token after the first.

    The ids are random but always the same, below the vocabulary; each new token is the likeliest. The garbage collector is
    off meanwhile.

    Args:
        program: The model.
        request: How much.
        before: Positions that the cache holds already; what `request.depth` lacks is computed first, untimed.
        clock: Nanoseconds.
    """
    ids = np.random.default_rng(_SEED).integers(
        0, program.vocabulary_size, request.depth + request.prefill_tokens, dtype=np.int32
    )
    if before < request.depth:
        program.forward(ids[before : request.depth], before, logits="none")
    token: NDArray[np.int32] = np.zeros(1, np.int32)
    seconds = []
    gc.collect()
    gc.disable()
    try:
        begin = clock()
        token[0] = program.forward(ids[request.depth :], request.depth, logits="last").argmax()
        first = clock()
        last = first
        for position in range(len(ids), len(ids) + request.decode_tokens - 1):
            token[0] = program.forward(token, position, logits="last").argmax()
            now = clock()
            seconds.append((now - last) / 1e9)
            last = now
    finally:
        gc.enable()
    return (first - begin) / 1e9, tuple(seconds)


class _Worker:
    """One language model, open in one runtime."""

    def __init__(self) -> None:
        self._program: CausalProgram | None = None
        self._filled = 0
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def handle(self, data: Any) -> Opened | Generated | Spun:
        """Do what a request asks.

        Raises:
            EdgelmError: It failed in an expected way.
        """
        if data["op"] == "open":
            return self._open(dacite.from_dict(OpenModel, data, _CONFIG))
        if data["op"] == "spin":
            return self._spin(dacite.from_dict(SpinModel, data, _CONFIG))
        at_s = time.perf_counter()
        prefill_s, decode_s = self._repeat(dacite.from_dict(Generate, data, _CONFIG))
        return Generated(at_s=at_s, prefill_s=prefill_s, decode_s=decode_s, peak_memory_bytes=peak_memory_bytes())

    def _spin(self, request: SpinModel) -> Spun:
        stop = time.perf_counter() + request.seconds
        # One token "after the prompt" is the choice of the first, and computes nothing.
        once = Generate(
            depth=request.depth, prefill_tokens=request.prefill_tokens, decode_tokens=request.decode_tokens or 1
        )
        done = 0
        while not done or time.perf_counter() < stop:
            self._repeat(once)
            done += 1
        return Spun(queries=done)

    def _repeat(self, request: Generate) -> tuple[float, tuple[float, ...]]:
        if self._program is None:
            raise InputError("There is no model open to generate with.")
        times = repeat_once(self._program, request, min(self._filled, request.depth))
        self._filled = request.depth  # what lies behind is of this answer
        return times

    def _open(self, request: OpenModel) -> Opened:
        baseline = peak_memory_bytes()
        begin = time.perf_counter()
        bundle = self._opened.enter_context(open_bundle(request.path))
        name = request.runtime or default_runtime(bundle.manifest)
        artifact = choose_artifact(bundle.manifest, name)
        options = ProgramOptions(threads=request.threads or default_threads(bundle.manifest))
        program = open_causal(name, bundle.path(artifact.file), artifact.signatures, options)
        self._opened.callback(program.close)
        self._program = program
        return Opened(
            facts=program.facts,
            artifact_file=artifact.file,
            context_length=program.context_length,
            load_s=time.perf_counter() - begin,
            baseline_memory_bytes=baseline,
        )


def main() -> None:
    """Serve requests until stdin ends."""
    with _Worker() as worker:
        serve(worker.handle)


if __name__ == "__main__":
    main()
