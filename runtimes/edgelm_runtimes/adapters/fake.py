"""A runtime that runs nothing: for tests of applications, without a model's time and memory.

Its answers have the right names, shapes and dtypes, and depend on the inputs alone: the same input always gives the same
answer. A test that needs a certain answer gives a function:

>>> program = FakeProgram(artifact.signatures, answer=lambda signature, inputs: {"logits": np.eye(3)[:1]})
>>> session = Session(bundle, artifact, program)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port, Signature
from edgelm.errors import RuntimeUnavailableError
from edgelm_runtimes.adapters.shared import check_inputs, closed, unknown_signature
from edgelm_runtimes.program import Arrays, ProgramFacts, ProgramOptions

__all__ = ["Answer", "FakeProgram", "open_program"]

Answer = Callable[[Signature, Mapping[str, NDArray[Any]]], Arrays]

_VERSION = "1"


def _answer(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return outputs in (0, 1) along the last axis, which sum to 1, made from the sum of all inputs."""
    seed = int(sum(float(np.abs(value).sum()) for value in inputs.values()) * 1000) % 2**32
    shape = next(iter(inputs.values())).shape
    return {port.name: _values(port, shape, np.random.default_rng(seed)) for port in signature.outputs}


def _values(port: Port, input_shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    extents = [
        extent if extent is not None else (input_shape[axis] if axis < len(input_shape) else 1)
        for axis, extent in enumerate(port.shape)
    ]
    values = generator.random(extents) + 1e-3
    return np.asarray(values / values.sum(axis=-1, keepdims=True) if extents else values, port.dtype)


class FakeProgram:
    """A `Program` whose answers come from a function.

    Args:
        signatures: Those of the artifact.
        options: Reported in `facts`.
        answer: Makes the outputs from the inputs; without it they are made from the sum of the inputs.
    """

    def __init__(
        self,
        signatures: tuple[Signature, ...],
        options: ProgramOptions | None = None,
        *,
        answer: Answer = _answer,
    ) -> None:
        self._signatures = {signature.name for signature in signatures}
        self._options = options or ProgramOptions(threads=1)
        self._answer = answer
        self._closed = False

    @property
    def facts(self) -> ProgramFacts:
        """What it claims to be."""
        notes = ("a fake for tests: its numbers mean nothing",)
        return ProgramFacts("fake", _VERSION, self._options.device, self._options.threads or 1, "none", notes)

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Program.run`."""
        if self._closed:
            raise closed("fake")
        if signature.name not in self._signatures:
            raise unknown_signature("fake", signature.name, self._signatures)
        check_inputs(signature, inputs)
        return self._answer(signature, inputs)

    def close(self) -> None:
        """See `Program.close`."""
        self._closed = True


def open_program(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> FakeProgram:
    """Open nothing: the file only has to be there.

    Raises:
        RuntimeUnavailableError: There is no such file.
    """
    if not file.is_file():
        raise RuntimeUnavailableError(f"fake does not open {file.name}: there is no such file.")
    return FakeProgram(signatures, options)
