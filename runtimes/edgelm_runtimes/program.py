"""What a runtime adapter gives: a program with signatures that can be run, or a language model with its cache.

An adapter is a function ``(file, signatures, options) -> Program``, or one to a `CausalProgram`. It is named in the table of
`edgelm_runtimes.registry` and imported on demand, so that nothing of a runtime that is not used is ever loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Signature

__all__ = ["Arrays", "CausalProgram", "Logits", "Program", "ProgramFacts", "ProgramOptions"]

Arrays = dict[str, NDArray[Any]]
Logits = Literal["none", "last", "all"]


@dataclass(frozen=True)
class ProgramOptions:
    """How to open a model file.

    Attributes:
        device: As `edgelm_runtimes.device.parse_device` reads it.
        threads: Threads of the runtime; None lets edgelm choose (the cores that this process may use, at most 4).
    """

    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class ProgramFacts:
    """What really runs: recorded in every measurement.

    Attributes:
        runtime: ``litert``, ``tflite`` or ``onnx``.
        runtime_version: Of the installed package.
        device: Where it runs, such as ``cpu``.
        threads: Threads that the runtime was given.
        delegate: What executes the operators, such as ``XNNPACK`` or ``CPUExecutionProvider``.
        notes: Anything that was not as asked.
        placement: How many operators run where, such as ``{"edgetpu": 41, "cpu": 2}``; None where it all is one processor's.
    """

    runtime: str
    runtime_version: str
    device: str
    threads: int
    delegate: str
    notes: tuple[str, ...] = ()
    placement: dict[str, int] | None = None


class Program(Protocol):
    """A model file opened by one runtime. Not safe to run from two threads at once: `Session` holds a lock."""

    @property
    def facts(self) -> ProgramFacts:
        """What runs it."""
        ...

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run one signature.

        Args:
            signature: One of those that the program was opened with.
            inputs: Every input by name, with the shape and dtype of its port (free dimensions filled in).

        Returns:
            Every output by name, as arrays that the caller owns.

        Raises:
            ExecutionError: The runtime failed.
        """
        ...

    def close(self) -> None:
        """Give back the memory. Running afterwards is an error."""
        ...


class CausalProgram(Protocol):
    """A language model opened by one runtime, with the keys and values of one sequence in its cache.

    The cache is all of its state. A position is computed from those before it alone, so going back is a call with a smaller
    `start`: what the cache held from there on counts no more. Not safe to run from two threads at once.
    """

    @property
    def facts(self) -> ProgramFacts:
        """What runs it."""
        ...

    @property
    def context_length(self) -> int:
        """The most positions that it holds."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Scores of a step, ``V``."""
        ...

    def forward(self, ids: NDArray[np.int32], start: int, *, logits: Logits = "last") -> NDArray[np.float32]:
        """Compute the tokens at the positions `start` to ``start + n - 1``, of which those before `start` were computed.

        Args:
            ids: int32 ``(n,)``, n >= 1, each below `vocabulary_size`; ``start + n`` is at most `context_length`.
            start: Position of the first of them: at most the number of positions that are computed without a gap.
            logits: Which scores to give: those of the token after the last one, after each one, or none at all, which
                may save the head's time.

        Returns:
            float32 ``(V,)``, ``(n, V)`` or ``(0,)``; the next call may overwrite it.

        Raises:
            ExecutionError: The runtime failed, or the program was closed.
        """
        ...

    def close(self) -> None:
        """Give back the memory. Running afterwards is an error."""
        ...


class OpenCausal(Protocol):
    """A function that opens a language model."""

    def __call__(self, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> CausalProgram:
        """Open a model file, whose signatures have a cache.

        Raises:
            RuntimeUnavailableError: The runtime is not installed, or refuses this file.
        """
        ...


class OpenProgram(Protocol):
    """The one function of an adapter module."""

    def __call__(self, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> Program:
        """Open a model file.

        Raises:
            RuntimeUnavailableError: The runtime is not installed, or refuses this file.
        """
        ...
