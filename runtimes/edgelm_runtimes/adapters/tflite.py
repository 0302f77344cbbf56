"""The old TFLite runtime (the package `tflite-runtime`, last release 2.14 of 2023), for boards that have no other: 32-bit ARM.

It runs float32, fp16 and weight-only files. What it computes wrongly, or crashes on, stands in the manifest as refused and
does not get here. It is built against NumPy 1; `edgelm_runtimes.registry` refuses it beside NumPy 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError
from edgelm_runtimes.adapters.shared import (
    as_numbers,
    check_inputs,
    check_names,
    closed,
    first_line,
    refused,
    unknown_signature,
    version,
)
from edgelm_runtimes.program import Arrays, ProgramFacts, ProgramOptions

__all__ = ["open_program"]

_RUNTIME = "tflite"
_DISTRIBUTION = "tflite-runtime"


class _TfliteProgram:
    """A `Program` on the signature runners of an `Interpreter`."""

    def __init__(self, interpreter: Any, signatures: tuple[Signature, ...], facts: ProgramFacts) -> None:
        self._interpreter: Any = interpreter
        self._facts = facts
        self._runners: dict[str, Any] = {}
        names = interpreter.get_signature_list()
        for signature in signatures:
            if signature.name not in names:
                raise unknown_signature(_RUNTIME, signature.name, names)
            check_names(_RUNTIME, signature, names[signature.name]["inputs"], names[signature.name]["outputs"])
        self._names = set(names)

    @property
    def facts(self) -> ProgramFacts:
        """See `Program.facts`."""
        return self._facts

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Program.run`."""
        if self._interpreter is None:
            raise closed(_RUNTIME)
        if signature.name not in self._names:
            raise unknown_signature(_RUNTIME, signature.name, self._names)
        check_inputs(signature, inputs)
        try:
            runner = self._runners.get(signature.name)
            if runner is None:
                runner = self._runners[signature.name] = self._interpreter.get_signature_runner(signature.name)
            return as_numbers(signature, {name: np.array(value) for name, value in runner(**inputs).items()})
        except (RuntimeError, ValueError) as error:
            raise ExecutionError(f"tflite failed in '{signature.name}': {first_line(error)}") from error

    def close(self) -> None:
        """See `Program.close`."""
        self._runners.clear()
        self._interpreter = None


def open_program(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> _TfliteProgram:
    """Open a TFLite file.

    Raises:
        RuntimeUnavailableError: The runtime refuses it, or it is not what the manifest describes.
    """
    from tflite_runtime.interpreter import Interpreter

    threads = options.threads or 1
    try:
        interpreter = Interpreter(str(file), num_threads=threads)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise refused(_RUNTIME, file, error) from error
    facts = ProgramFacts(_RUNTIME, version(_DISTRIBUTION), "cpu", threads, "XNNPACK")
    return _TfliteProgram(interpreter, signatures, facts)
