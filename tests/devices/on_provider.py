"""Run an ONNX file on an accelerator of ONNX Runtime: ``python on_provider.py MODEL INPUTS.npz OUTPUTS.npz WHERE``, which is
``webgpu``, ``qnn``, ``qnn-context`` (a file that ``qnn`` compiled before) or ``cpu``.

A process of its own, with the variant of ONNX Runtime that its PYTHONPATH names. What QNN does not take is an error
(``session.disable_cpu_ep_fallback``): a provider that is listed and not used would go unnoticed otherwise. WebGPU always leaves
the arithmetic of shapes to the processor. Prints the version; ``qnn`` writes the compiled context beside the outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

__all__ = ["main"]

# A Snapdragon 8 Gen 3; the emulator refuses to prepare a graph for an unknown chip ("Failed to finalize QNN graph. Error:
# QNN_COMMON_ERROR_MEM_ALLOC", 1002).
_HEXAGON = {"htp_arch": "75", "soc_model": "57"}


def main(model: str, inputs: str, outputs: str, where: str) -> None:
    """Run, and write the outputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    with np.load(inputs) as arrays:
        given = dict(arrays)
    if where == "cpu":
        # As edgelm's adapter: on x86-64 without VNNI the fast kernels' sums of int8 products are cut off at 16 bits, which was
        # off by as much as 0.3 of 0.6, where the emulator was right to 0.02.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if where != "qnn-context":
        # An accelerator compiles for fixed shapes: batch 1, and the length of what is given.
        _fix_free_dimensions(model, given, options)
    if where in ("qnn", "qnn-context"):
        _use_qnn(options)
    if where == "qnn":
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(Path(outputs).with_name("context.onnx")))
    providers = {"webgpu": ["WebGpuExecutionProvider"], "cpu": ["CPUExecutionProvider"]}.get(where)
    if where in ("qnn", "qnn-context"):
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(model, options, providers=providers)
    values = session.run(None, {port.name: given[port.name] for port in session.get_inputs()})
    np.savez(Path(outputs), **dict(zip([port.name for port in session.get_outputs()], values, strict=True)))
    sys.stdout.write(f"{ort.__version__} {' '.join(session.get_providers())}\n")


def _fix_free_dimensions(model: str, given: Mapping[str, NDArray[Any]], options: ort.SessionOptions) -> None:
    for port in ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs():
        for extent, size in zip(port.shape, given[port.name].shape, strict=True):
            if isinstance(extent, str):
                options.add_free_dimension_override_by_name(extent, size)


def _use_qnn(options: ort.SessionOptions) -> None:
    import onnxruntime_qnn

    name = "QNNExecutionProvider"
    ort.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    device = next(device for device in ort.get_ep_devices() if device.ep_name == name)
    backend = Path(onnxruntime_qnn.get_library_path()).with_name("libQnnHtp.so")
    options.add_provider_for_devices([device], {"backend_path": str(backend), **_HEXAGON})


if __name__ == "__main__":
    main(*sys.argv[1:])
