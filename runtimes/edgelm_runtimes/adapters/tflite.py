"""The old TFLite runtime (the package `tflite-runtime`, last release 2.14 of 2023), for boards that have no other: 32-bit ARM.

It runs float32, fp16 and weight-only files. What it computes wrongly, or crashes on, stands in the manifest as refused and
does not get here. It is built against NumPy 1; `edgelm_runtimes.registry` refuses it beside NumPy 2.
"""

from __future__ import annotations

from pathlib import Path

from edgelm.bundle import Signature
from edgelm_runtimes.adapters.delegated import open_delegated
from edgelm_runtimes.adapters.interpreter import InterpreterProgram
from edgelm_runtimes.adapters.shared import refused, version
from edgelm_runtimes.device import parse_device
from edgelm_runtimes.program import ProgramFacts, ProgramOptions

__all__ = ["open_program"]

_RUNTIME = "tflite"
_DISTRIBUTION = "tflite-runtime"


def open_program(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> InterpreterProgram:
    """Open a TFLite file.

    Raises:
        RuntimeUnavailableError: The runtime refuses it, or it is not what the manifest describes.
    """
    from tflite_runtime import interpreter as tflite
    from tflite_runtime.interpreter import Interpreter

    device = parse_device(options.device)
    if device.kind != "cpu":
        return open_delegated(_RUNTIME, _DISTRIBUTION, tflite, device, file, signatures, options)
    threads = options.threads or 1
    try:
        interpreter = Interpreter(str(file), num_threads=threads)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise refused(_RUNTIME, file, error) from error
    facts = ProgramFacts(_RUNTIME, version(_DISTRIBUTION), "cpu", threads, "XNNPACK")
    return InterpreterProgram(interpreter, signatures, facts)
