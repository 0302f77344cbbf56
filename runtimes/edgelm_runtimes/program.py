"""What a runtime adapter gives: a program with signatures that can be run.

An adapter is a module with one function, ``open_program(file, signatures, options) -> Program``. It is named in the table
of `edgelm_runtimes.registry` and imported on demand, so that nothing of a runtime that is not used is ever loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgelm.bundle import Signature

__all__ = ["Arrays", "Program", "ProgramFacts", "ProgramOptions"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ProgramOptions:
    """How to open a model file.

    Attributes:
        device: ``cpu`` in this version.
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
    """

    runtime: str
    runtime_version: str
    device: str
    threads: int
    delegate: str
    notes: tuple[str, ...] = ()


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


class OpenProgram(Protocol):
    """The one function of an adapter module."""

    def __call__(self, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> Program:
        """Open a model file.

        Raises:
            RuntimeUnavailableError: The runtime is not installed, or refuses this file.
        """
        ...
