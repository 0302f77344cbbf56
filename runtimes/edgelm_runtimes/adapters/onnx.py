"""ONNX Runtime, on its CPU provider.

Threads that wait do not spin. Measured with ONNX Runtime 1.32 on 2 x86-64 cores that others use too (4 layers, width 256,
int8, 64 tokens, 2 threads): spinning, a run takes 8.7 ms at the median and 5.6 ms of processor time; without, 2.6 ms and
2.4 ms; the fastest run is the same, 1.9 and 1.8 ms. On a battery the processor time is the energy.

IO binding was tried and is no faster on a CPU; nor is anything gained without the memory arena (1 MB of 28).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError
from edgelm_runtimes.adapters.shared import (
    check_inputs,
    check_names,
    closed,
    first_line,
    refused,
    unknown_signature,
    version,
)
from edgelm_runtimes.machine import machine_facts
from edgelm_runtimes.program import Arrays, ProgramFacts, ProgramOptions

__all__ = ["open_program"]

_RUNTIME = "onnx"
_DISTRIBUTION = "onnxruntime"
_PROVIDER = "CPUExecutionProvider"
_SIGNATURE = "main"  # an ONNX file has one graph
_ERRORS_ONLY = 3


class _OnnxProgram:
    """A `Program` on an `InferenceSession`."""

    def __init__(self, session: Any, failures: tuple[type[Exception], ...], facts: ProgramFacts) -> None:
        self._session: Any = session
        self._failures = failures
        self._facts = facts
        self._outputs = [output.name for output in session.get_outputs()]

    @property
    def facts(self) -> ProgramFacts:
        """See `Program.facts`."""
        return self._facts

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Program.run`."""
        if self._session is None:
            raise closed(_RUNTIME)
        if signature.name != _SIGNATURE:
            raise unknown_signature(_RUNTIME, signature.name, [_SIGNATURE])
        check_inputs(signature, inputs)
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
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
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # Each status of ONNX Runtime is an exception of its own; they have no common base but Exception.
    failures: tuple[type[Exception], ...] = (
        state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
        state.ModelLoaded, state.NoModel, state.NoSuchFile, state.NotImplemented, state.RuntimeException,
        RuntimeError, ValueError,
    )  # fmt: skip
    threads = options.threads or 1
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _ERRORS_ONLY
    # See the head of this file.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    notes: tuple[str, ...] = ()
    if _int8_saturates(machine_facts().isa):
        settings.add_session_config_entry("session.x64quantprecision", "1")
        notes = ("int8 products are computed without the kernels that saturate on this processor, which has no VNNI",)
    try:
        session = onnxruntime.InferenceSession(str(file), settings, providers=[_PROVIDER])
    except failures as error:
        raise refused(_RUNTIME, file, error) from error
    for signature in signatures:
        if signature.name != _SIGNATURE:
            raise unknown_signature(_RUNTIME, signature.name, [_SIGNATURE])
        check_names(
            _RUNTIME, signature, [put.name for put in session.get_inputs()], [put.name for put in session.get_outputs()]
        )
    facts = ProgramFacts(_RUNTIME, version(_DISTRIBUTION), "cpu", threads, _PROVIDER, notes)
    return _OnnxProgram(session, failures, facts)


def _int8_saturates(isa: tuple[str, ...]) -> bool:
    """Return whether ONNX Runtime's int8 kernels for this processor may saturate.

    Without VNNI an x86-64 processor multiplies uint8 by int8 in pairs summed to 16 bits, which overflow where both are
    large; ``session.x64quantprecision`` takes kernels that do not (onnxruntime_session_options_config_keys.h).
    """
    return bool({"avx2", "avx512f"} & set(isa)) and not {"avx_vnni", "avx512_vnni"} & set(isa)
