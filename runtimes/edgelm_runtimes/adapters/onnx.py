"""ONNX Runtime, on its CPU provider.

IO binding was tried and is no faster on a CPU where there is no cache to keep; nor is anything gained without the memory arena
(1 MB of 28).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError
from edgelm_runtimes.adapters.onnx_session import RUNTIME, SIGNATURE, OnnxSession, open_session
from edgelm_runtimes.adapters.shared import as_numbers, check_inputs, check_names, closed, first_line, unknown_signature
from edgelm_runtimes.program import Arrays, ProgramFacts, ProgramOptions

__all__ = ["open_program"]


class _OnnxProgram:
    """A `Program` on an `InferenceSession`."""

    def __init__(self, opened: OnnxSession) -> None:
        self._session: Any = opened.session
        self._failures = opened.failures
        self._facts = opened.facts
        self._outputs = [output.name for output in opened.session.get_outputs()]

    @property
    def facts(self) -> ProgramFacts:
        """See `Program.facts`."""
        return self._facts

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Program.run`."""
        if self._session is None:
            raise closed(RUNTIME)
        if signature.name != SIGNATURE:
            raise unknown_signature(RUNTIME, signature.name, [SIGNATURE])
        check_inputs(signature, inputs)
        try:
            return as_numbers(
                signature, dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
            )
        except self._failures as error:
            raise ExecutionError(f"onnx failed: {first_line(error)}") from error

    def close(self) -> None:
        """See `Program.close`."""
        self._session = None


def open_program(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> _OnnxProgram:
    """Open an ONNX file.

    Raises:
        RuntimeUnavailableError: ONNX Runtime refuses it, or it is not what the manifest describes.
    """
    opened = open_session(file, options)
    session = opened.session
    for signature in signatures:
        if signature.name != SIGNATURE:
            raise unknown_signature(RUNTIME, signature.name, [SIGNATURE])
        check_names(
            RUNTIME, signature, [put.name for put in session.get_inputs()], [put.name for put in session.get_outputs()]
        )
    return _OnnxProgram(opened)
