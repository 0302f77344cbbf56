"""Make the files of the tools that a user would take instead, each from the same Keras model and calibration texts.

    python compression_peers.py PEER MODEL CACHE OUTPUT_FOLDER --tokens 64

| peer | how |
|---|---|
| tflite-fp32, -dynamic, -static | TensorFlow's converter on Keras's graph: plain, Optimize.DEFAULT, and calibration texts too |
| quantizer-dynamic, -static | ai-edge-quantizer's ``dynamic_wi8_afp32`` and ``static_wi8_ai8`` on tflite-fp32 |
| onnx-fp32, -dynamic, -static | Keras's ONNX export (tf2onnx); ONNX Runtime's quantize_dynamic, quantize_static as they come |
| openvino-fp32, nncf-static | OpenVINO on Keras's SavedModel; ``nncf.quantize`` for Transformers |

A peer that builds on another's file takes it from OUTPUT_FOLDER. OpenVINO and NNCF may live in an interpreter of their own:
what they need from TensorFlow, the SavedModel, is the peer ``saved-model``. All have the calibration texts that edgelm has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_worker import arrays, pick

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True)
class Job:
    """What a peer is made from: the task's name and cache, its ids, the most tokens, and the folder of files."""

    task: str
    cache: Path
    tokens: int
    folder: Path

    def calibration(self) -> list[list[int]]:
        found: list[list[int]] = json.loads((self.folder / "calibration.json").read_text())
        return found

    def model(self) -> Any:
        from compression_models import TASKS, load_keras

        return load_keras(TASKS[self.task], self.cache)


# ---------------------------------------------------------------------------------------------------- TensorFlow Lite


def tflite(job: Job, output: Path, *, optimise: bool, integer: bool) -> None:
    """Go through Keras's own export: a concrete function handed to the converter leaves Keras 3's weights out of the file."""
    import tensorflow as tf

    model = job.model()
    names = [tensor.name for tensor in model.inputs]
    specs = {name: tf.TensorSpec((1, job.tokens), "int32", name=name) for name in names}
    builtins = tf.lite.OpsSet.TFLITE_BUILTINS_INT8 if integer else tf.lite.OpsSet.TFLITE_BUILTINS
    options: dict[str, Any] = {"target_spec": {"supported_ops": [builtins]}}
    if optimise:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if integer:
        options["representative_dataset"] = lambda: (
            {name: pick(found, name) for name in names} for found in fixed(job.calibration(), job.tokens)
        )
    signature = [specs if len(names) > 1 else specs[names[0]]]
    model.export(output, format="litert", input_signature=signature, verbose=False, **options)


def fixed(texts: list[list[int]], tokens: int) -> Iterator[dict[str, Any]]:
    for ids in texts:
        yield arrays(ids, tokens)


def quantizer(job: Job, output: Path, *, static: bool) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer as q
    from ai_edge_quantizer import recipe

    source = str(job.folder / "tflite-fp32.tflite")
    made = q.Quantizer(source, recipe.static_wi8_ai8() if static else recipe.dynamic_wi8_afp32())
    statistics = None
    if static:
        key, ports = next(iter(Interpreter(source).get_signature_list().items()))
        texts = [
            {name: pick(found, name) for name in ports["inputs"]} for found in fixed(job.calibration(), job.tokens)
        ]
        statistics = made.calibrate({key: texts})
    made.quantize(statistics).export_model(str(output), overwrite=True)


# ---------------------------------------------------------------------------------------------------- ONNX Runtime


def onnx_export(job: Job, output: Path) -> None:
    model = job.model()
    example = arrays([1] * job.tokens, None)
    names = [tensor.name for tensor in model.inputs]
    model(
        {name: example[name] for name in names} if len(names) > 1 else example[names[0]]
    )  # an uncalled one has no graph
    model.export(output, format="onnx", verbose=False)


def onnx_dynamic(job: Job, output: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(prepared(job), output)


def onnx_static(job: Job, output: Path) -> None:
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    source = prepared(job)
    kinds = {onnx.TensorProto.INT32: np.int32, onnx.TensorProto.INT64: np.int64, onnx.TensorProto.FLOAT: np.float32}
    ports = [(port.name, kinds[port.type.tensor_type.elem_type]) for port in onnx.load(source).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._texts = iter(job.calibration())

        def get_next(self) -> dict[str, Any] | None:
            ids = next(self._texts, None)
            return None if ids is None else {n: pick(arrays(ids, None), n).astype(kind) for n, kind in ports}

    quantize_static(source, output, Reader())


def prepared(job: Job) -> Path:
    """Return the graph after ONNX Runtime's own preparation, as its documentation asks for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = job.folder / "onnx-prepared.onnx"
    if not path.exists():
        quant_pre_process(job.folder / "onnx-fp32.onnx", path, skip_symbolic_shape=True)
    return path


# ---------------------------------------------------------------------------------------------------- OpenVINO


def saved_model(job: Job, output: Path) -> None:
    job.model().export(output, verbose=False)


def openvino(job: Job, output: Path) -> None:
    import openvino as ov

    ov.save_model(ov.convert_model(job.folder / "saved-model"), output, compress_to_fp16=False)


def nncf_static(job: Job, output: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(job.folder / "openvino-fp32.xml")
    names = [port.get_any_name() for port in model.inputs]
    texts = [{name: pick(arrays(ids, None), name) for name in names} for ids in job.calibration()]
    made = nncf.quantize(model, nncf.Dataset(texts), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
    ov.save_model(made, output, compress_to_fp16=False)


# ---------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Peer:
    """One tool's file.

    Attributes:
        make: Writes it.
        suffix: Of the file.
        engine: That runs it; None for one that others build on.
        needs: Peers that come before.
        apart: Whether it may need an interpreter of its own.
    """

    make: Callable[[Job, Path], None]
    suffix: str
    engine: str | None
    needs: tuple[str, ...] = ()
    apart: bool = False


PEERS = {
    "tflite-fp32": Peer(lambda job, out: tflite(job, out, optimise=False, integer=False), ".tflite", "litert"),
    "tflite-dynamic": Peer(lambda job, out: tflite(job, out, optimise=True, integer=False), ".tflite", "litert"),
    "tflite-static": Peer(lambda job, out: tflite(job, out, optimise=True, integer=True), ".tflite", "litert"),
    "quantizer-dynamic": Peer(
        lambda job, out: quantizer(job, out, static=False), ".tflite", "litert", ("tflite-fp32",)
    ),
    "quantizer-static": Peer(lambda job, out: quantizer(job, out, static=True), ".tflite", "litert", ("tflite-fp32",)),
    "onnx-fp32": Peer(onnx_export, ".onnx", "onnxruntime"),
    "onnx-dynamic": Peer(onnx_dynamic, ".onnx", "onnxruntime", ("onnx-fp32",)),
    "onnx-static": Peer(onnx_static, ".onnx", "onnxruntime", ("onnx-fp32",)),
    "saved-model": Peer(saved_model, "", None),
    "openvino-fp32": Peer(openvino, ".xml", "openvino", ("saved-model",), apart=True),
    "nncf-static": Peer(nncf_static, ".xml", "openvino", ("openvino-fp32",), apart=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("task")
    parser.add_argument("cache", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, required=True)
    arguments = parser.parse_args()
    peer = PEERS[arguments.peer]
    job = Job(arguments.task, arguments.cache, arguments.tokens, arguments.folder)
    peer.make(job, arguments.folder / f"{arguments.peer}{peer.suffix}")


if __name__ == "__main__":
    main()
