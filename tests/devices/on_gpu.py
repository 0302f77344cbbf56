"""Run one signature of a TFLite file with LiteRT: ``python on_gpu.py MODEL SIGNATURE INPUTS.npz OUTPUTS.npz gpu|gpu-only|cpu``.

A process of its own, since a driver may end it. ``gpu`` leaves the processor what the accelerator does not take, ``gpu-only``
fails then. Inputs and outputs are float32 or int32 arrays by their names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, GpuOptions, HardwareAccelerator, Options

__all__ = ["main"]


def main(model: str, signature: str, inputs: str, outputs: str, where: str) -> None:
    """Run, and write the outputs."""
    processor, gpu = HardwareAccelerator.CPU, HardwareAccelerator.GPU
    accelerators = {"cpu": processor, "gpu": gpu | processor, "gpu-only": gpu}[where]
    options = Options(accelerators, cpu_options=CpuOptions(num_threads=1), gpu_options=GpuOptions(enforce_f32=True))
    loaded = CompiledModel.from_file(model, options=options)
    names = loaded.get_signature_list()[signature]
    index = loaded.get_signature_index(signature)
    given, taken = loaded.create_input_buffers(index), loaded.create_output_buffers(index)
    with np.load(inputs) as arrays:
        for name, buffer in zip(names["inputs"], given, strict=True):
            buffer.write(np.ascontiguousarray(arrays[name]))
    loaded.run_by_index(index, given, taken)
    details = loaded.get_output_tensor_details(signature)
    np.savez(
        Path(outputs),
        **{
            name: buffer.read(int(np.prod(details[name]["shape"])), np.float32).reshape(details[name]["shape"])
            for name, buffer in zip(names["outputs"], taken, strict=True)
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
