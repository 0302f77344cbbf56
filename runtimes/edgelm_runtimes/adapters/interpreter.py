"""A program on a TFLite `Interpreter`, of tflite-runtime and of ai-edge-litert alike."""

from __future__ import annotations

from collections.abc import Mapping
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
    unknown_signature,
)
from edgelm_runtimes.program import Arrays, ProgramFacts

__all__ = ["InterpreterProgram"]


class InterpreterProgram:
    """A `Program` on the signature runners of an `Interpreter`."""

    def __init__(self, interpreter: Any, signatures: tuple[Signature, ...], facts: ProgramFacts) -> None:
        self._interpreter: Any = interpreter
        self._facts = facts
        self._runners: dict[str, Any] = {}
        names = interpreter.get_signature_list()
        for signature in signatures:
            if signature.name not in names:
                raise unknown_signature(facts.runtime, signature.name, names)
            check_names(facts.runtime, signature, names[signature.name]["inputs"], names[signature.name]["outputs"])
        self._names = set(names)

    @property
    def facts(self) -> ProgramFacts:
        """See `Program.facts`."""
        return self._facts

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Program.run`."""
        runtime = self._facts.runtime
        if self._interpreter is None:
            raise closed(runtime)
        if signature.name not in self._names:
            raise unknown_signature(runtime, signature.name, self._names)
        check_inputs(signature, inputs)
        try:
            runner = self._runners.get(signature.name)
            if runner is None:
                runner = self._runners[signature.name] = self._interpreter.get_signature_runner(signature.name)
            return as_numbers(signature, {name: np.array(value) for name, value in runner(**inputs).items()})
        except (RuntimeError, ValueError) as error:
            where = "" if self._facts.device == "cpu" else f" on {self._facts.device}"
            raise ExecutionError(f"{runtime} failed in '{signature.name}'{where}: {first_line(error)}") from error

    def close(self) -> None:
        """See `Program.close`."""
        self._runners.clear()
        self._interpreter = None
