"""LiteRT (the package `ai-edge-litert`), by its compiled-model interface.

Why `CompiledModel` and not `Interpreter`: only it takes a cache of packed weights. XNNPACK packs the weights once for each
subgraph, so a file with a signature for each of 16, 32, 64 and 128 tokens holds them five times. Measured with LiteRT
2.3.0 on x86-64 (4 layers, width 256, four signatures, all of them run once; growth of the process, load plus first run):

================================  ==============  =============
way                               float32, 21 MB  int8, 6.1 MB
================================  ==============  =============
`Interpreter`                      79 MB,  47 ms  34 MB,  37 ms
`CompiledModel`                    84 MB,  71 ms  38 MB,  43 ms
`CompiledModel`, cache in memory   36 MB,  26 ms  26 MB,  14 ms
================================  ==============  =============

The speed of a run is the same in all three. A cache in a file loads faster still, but a device's disk is not ours to
write to. Copying inputs and outputs takes 4 µs a run.

LiteRT tells on stderr what it does while it loads, about 25 lines, and has no switch for that in Python
(https://github.com/google-ai-edge/LiteRT/issues/7420).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError
from edgelm_runtimes.adapters.delegated import open_delegated
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
from edgelm_runtimes.device import parse_device
from edgelm_runtimes.litert_package import prepare_litert
from edgelm_runtimes.program import Arrays, Program, ProgramFacts, ProgramOptions

__all__ = ["check_signature", "open_model", "open_program"]

_RUNTIME = "litert"
_DISTRIBUTION = "ai-edge-litert"
_CACHE_IN_MEMORY = ":memory"  # a name that LiteRT knows: no file is written
_DTYPES = frozenset(("float32", "float16", "int32", "int8", "uint8", "bool"))  # what its buffers hold


@dataclass(frozen=True)
class _Buffers:
    """The buffers of one signature, made once and used for every run."""

    index: int
    inputs: list[tuple[str, Any]]
    input_list: list[Any]
    outputs: list[tuple[str, Any, int, np.dtype[Any], tuple[int, ...]]]
    output_list: list[Any]


class _LiteRtProgram:
    """A `Program` on a `CompiledModel`."""

    def __init__(self, model: Any, signatures: tuple[Signature, ...], facts: ProgramFacts) -> None:
        self._model: Any = model
        self._names = model.get_signature_list()
        self._facts = facts
        self._buffers: dict[str, _Buffers] = {}
        for signature in signatures:
            check_signature(model, signature)

    @property
    def facts(self) -> ProgramFacts:
        """See `Program.facts`."""
        return self._facts

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Program.run`."""
        if self._model is None:
            raise closed(_RUNTIME)
        buffers = self._buffers.get(signature.name)
        if buffers is None:
            # On first use: a signature that is never used costs no memory for its activations.
            buffers = self._buffers[signature.name] = self._make_buffers(signature)
        check_inputs(signature, inputs)
        try:
            for name, buffer in buffers.inputs:
                buffer.write(inputs[name])
            self._model.run_by_index(buffers.index, buffers.input_list, buffers.output_list)
            found = {
                name: buffer.read(size, dtype).reshape(shape) for name, buffer, size, dtype, shape in buffers.outputs
            }
            return as_numbers(signature, found)
        except (RuntimeError, ValueError) as error:
            raise ExecutionError(f"litert failed in '{signature.name}': {first_line(error)}") from error

    def close(self) -> None:
        """See `Program.close`."""
        self._buffers.clear()  # before the model that they belong to
        self._model = None

    def _make_buffers(self, signature: Signature) -> _Buffers:
        if signature.name not in self._names:
            raise unknown_signature(_RUNTIME, signature.name, self._names)
        names = self._names[signature.name]
        index = self._model.get_signature_index(signature.name)
        ports = {port.name: port for port in signature.outputs}
        try:
            inputs, outputs = self._model.create_input_buffers(index), self._model.create_output_buffers(index)
        except RuntimeError as error:
            raise ExecutionError(f"litert has no memory for '{signature.name}': {first_line(error)}") from error
        described = []
        for name, buffer in zip(names["outputs"], outputs, strict=True):
            shape = tuple(extent or 0 for extent in ports[name].shape)
            described.append((name, buffer, int(np.prod(shape)), np.dtype(ports[name].dtype), shape))
        return _Buffers(index, list(zip(names["inputs"], inputs, strict=True)), inputs, described, outputs)


def open_program(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> Program:
    """Open a TFLite file.

    Raises:
        RuntimeUnavailableError: LiteRT refuses it, the device does, or it is not what the manifest describes.
    """
    threads = options.threads or 1
    device = parse_device(options.device)
    if device.kind in ("edgetpu", "delegate"):
        prepare_litert()
        from ai_edge_litert import interpreter

        return open_delegated(_RUNTIME, _DISTRIBUTION, interpreter, device, file, signatures, options)
    if device.kind == "gpu":
        facts = ProgramFacts(_RUNTIME, version(_DISTRIBUTION), "gpu", threads, "GPU accelerator")
        return _LiteRtProgram(_open_on_gpu(file), signatures, facts)
    model = open_model(file, threads)
    facts = ProgramFacts(_RUNTIME, version(_DISTRIBUTION), "cpu", threads, "XNNPACK")
    return _LiteRtProgram(model, signatures, facts)


def _open_on_gpu(file: Path) -> Any:
    """Return a `CompiledModel` whose operators are all the GPU's: LiteRT refuses a file of which one is not.

    Raises:
        RuntimeUnavailableError: There is no GPU that it can use, or the file is not taken whole.
    """
    prepare_litert()
    from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator, Options

    try:
        model = CompiledModel.from_file(str(file), options=Options(HardwareAccelerator.GPU))
    except (RuntimeError, ValueError) as error:
        raise RuntimeUnavailableError(
            f"LiteRT's GPU accelerator does not take {file.name} ({first_line(error)}): it needs a driver for Vulkan, and a "
            "file of one length with static shapes (convert --for gpu)."
        ) from error
    if not model.is_fully_accelerated():
        raise RuntimeUnavailableError(f"LiteRT's GPU accelerator leaves operators of {file.name} to the processor.")
    return model


def open_model(file: Path, threads: int) -> Any:
    """Return a `CompiledModel` on the CPU, with its cache of packed weights in memory.

    Raises:
        RuntimeUnavailableError: LiteRT refuses the file.
    """
    prepare_litert()
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

    cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=_CACHE_IN_MEMORY)
    try:
        return CompiledModel.from_file(str(file), options=Options(HardwareAccelerator.CPU, cpu_options=cpu))
    except (RuntimeError, ValueError) as error:
        raise refused(_RUNTIME, file, _telling(file, error)) from error


def check_signature(model: Any, signature: Signature) -> None:
    """Check one signature of the manifest against the file.

    Raises:
        RuntimeUnavailableError: The file has no such signature, or another one of that name.
    """
    known = model.get_signature_list()
    if signature.name not in known:
        raise unknown_signature(_RUNTIME, signature.name, known)
    names = known[signature.name]
    check_names(_RUNTIME, signature, names["inputs"], names["outputs"])
    sides = (
        (signature.inputs, model.get_input_tensor_details(signature.name)),
        (signature.outputs, model.get_output_tensor_details(signature.name)),
    )
    for port, details in [(port, details) for ports, details in sides for port in ports]:
        shape = tuple(int(extent) for extent in details[port.name]["shape"])
        dtype = np.dtype(details[port.name]["dtype"]).name
        if shape != port.shape or dtype != port.dtype:
            raise RuntimeUnavailableError(
                f"litert: '{port.name}' of '{signature.name}' is {dtype} {list(shape)} in the file, and "
                f"{port.dtype} {list(port.shape)} in the manifest. They do not belong together."
            )
        if dtype not in _DTYPES:
            raise RuntimeUnavailableError(
                f"litert cannot pass {dtype} ('{port.name}' of '{signature.name}') in or out: "
                f"it takes {', '.join(sorted(_DTYPES))}."
            )


def _telling(file: Path, error: Exception) -> Exception:
    """Return the error of the older interface where it has one: that one says what is wrong, this one only where."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(str(file)).allocate_tensors()
    except (RuntimeError, ValueError) as told:
        return told
    return error
