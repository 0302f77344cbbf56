"""A session of ONNX Runtime on its CPU provider, as both adapters open it.

Threads that wait do not spin. Measured with ONNX Runtime 1.32 on 2 x86-64 cores that others use too (4 layers, width 256,
int8, 64 tokens, 2 threads): spinning, a run takes 8.7 ms at the median and 5.6 ms of processor time; without, 2.6 ms and
2.4 ms; the fastest run is the same, 1.9 and 1.8 ms. On a battery the processor time is the energy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm_runtimes.adapters.shared import refused, version
from edgelm_runtimes.machine import machine_facts
from edgelm_runtimes.program import ProgramFacts, ProgramOptions

__all__ = ["RUNTIME", "SIGNATURE", "OnnxSession", "int8_saturates", "open_session"]

RUNTIME = "onnx"
SIGNATURE = "main"  # an ONNX file has one graph
_DISTRIBUTION = "onnxruntime"
_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class OnnxSession:
    """An open file.

    Attributes:
        session: An ``onnxruntime.InferenceSession``.
        failures: What it raises.
        facts: What runs it.
    """

    session: Any
    failures: tuple[type[Exception], ...]
    facts: ProgramFacts


def open_session(file: Path, options: ProgramOptions) -> OnnxSession:
    """Open an ONNX file.

    Raises:
        RuntimeUnavailableError: ONNX Runtime refuses it.
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
    if int8_saturates(machine_facts().isa):
        settings.add_session_config_entry("session.x64quantprecision", "1")
        notes = ("int8 products are computed without the kernels that saturate on this processor, which has no VNNI",)
    try:
        session = onnxruntime.InferenceSession(str(file), settings, providers=[_PROVIDER])
    except failures as error:
        raise refused(RUNTIME, file, error) from error
    facts = ProgramFacts(RUNTIME, version(_DISTRIBUTION), "cpu", threads, _PROVIDER, notes)
    return OnnxSession(session, failures, facts)


def int8_saturates(isa: tuple[str, ...]) -> bool:
    """Return whether ONNX Runtime's int8 kernels for this processor may saturate.

    Without VNNI an x86-64 processor multiplies uint8 by int8 in pairs summed to 16 bits, which overflow where both are
    large; ``session.x64quantprecision`` takes kernels that do not (onnxruntime_session_options_config_keys.h).
    """
    return bool({"avx2", "avx512f"} & set(isa)) and not {"avx_vnni", "avx512_vnni"} & set(isa)
