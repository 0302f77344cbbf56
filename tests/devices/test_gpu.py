"""The GPU paths on SwiftShader, a Vulkan driver in software: LiteRT's accelerator and ONNX Runtime's WebGPU provider.

What passes here was *executed* on a driver that follows the specification. It reproduces faults that phones have too, which
the last tests hold on to: what the runtime does wrong without a word, and that our files keep out of its way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from edgelm_converters.emit.tflite_file import Data, Model, Operator, Subgraph, Tensor, write_model
from lanes import CACHE
from numpy.typing import NDArray

from edgelm.bundle import open_bundle
from edgelm.edgetpu.tflite import read_graphs

pytestmark = pytest.mark.devices
LANE = "gpu"

_HERE = Path(__file__).parent
_DRIVER = CACHE / "gpu/root/usr/lib/chromium"
_ELEMENTWISE = frozenset(("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"))
_LENGTH = 16


def _run(script: str, *arguments: str | Path, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, LD_LIBRARY_PATH=str(_DRIVER))
    driver = str(_DRIVER / "vk_swiftshader_icd.json")
    environment |= {"VK_ICD_FILENAMES": driver, "VK_DRIVER_FILES": driver}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, str(_HERE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


def _arrays(done: subprocess.CompletedProcess[str], path: Path) -> dict[str, NDArray[np.float32]]:
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(path) as arrays:
        return dict(arrays)


def _write(path: Path, tensors: list[Tensor], operator: Operator, inputs: list[int], constants: Iterable[Data]) -> Path:
    model = Model("one operator", [None, *constants])
    model.subgraphs.append(Subgraph("serve", tensors, [operator], inputs, [len(tensors) - 1]))
    write_model(model, path)
    return path


@pytest.fixture
def question(tmp_path: Path) -> Path:
    """Sixteen tokens of the example classifier."""
    ids = np.random.default_rng(0).integers(5, 1000, (1, _LENGTH)).astype(np.int32)
    np.savez(tmp_path / "question.npz", token_ids=ids, padding_mask=np.ones_like(ids))
    return tmp_path / "question.npz"


def _bound(bundle: Path, kind: str) -> float:
    """Return what the bundle itself allows its file to differ from Keras."""
    with open_bundle(bundle) as opened:
        return next(artifact.parity.bound for artifact in opened.manifest.artifacts if artifact.format == kind)


def test_litert_gives_the_processors_answer(intents: Callable[[str], Path], question: Path, tmp_path: Path) -> None:
    bundle = intents("fp32")
    found = {}
    for where in ("cpu", "gpu"):
        output = tmp_path / f"{where}.npz"
        done = _run("on_gpu.py", bundle / "model.tflite", f"serve_{_LENGTH}", question, output, where)
        found[where] = _arrays(done, output)
        if where == "gpu":
            # The runtime's own flag for "on the GPU" is not to be trusted; the adapter that it chose is in its log.
            assert "SwiftShader" in done.stderr
            assert "adapterType=CPU" in done.stderr
    for name, value in found["cpu"].items():
        np.testing.assert_allclose(found["gpu"][name], value, rtol=0, atol=_bound(bundle, "tflite"))


def test_onnx_runtime_webgpu_gives_the_processors_answer(
    intents: Callable[[str], Path], question: Path, tmp_path: Path
) -> None:
    bundle, packages = intents("fp32"), CACHE / "gpu/site-packages"
    found = {}
    for where in ("cpu", "webgpu"):
        done = _run(
            "on_provider.py", bundle / "model.onnx", question, tmp_path / f"{where}.npz", where, packages=packages
        )
        found[where] = _arrays(done, tmp_path / f"{where}.npz")
    assert "WebGpuExecutionProvider" in done.stdout
    for name, value in found["cpu"].items():
        np.testing.assert_allclose(found["webgpu"][name], value, rtol=0, atol=_bound(bundle, "onnx"))


def test_a_constant_of_a_higher_rank_is_added_wrongly_and_silently(tmp_path: Path) -> None:
    """LiteRT issue 8980. If this fails the fault was mended, and the ranks need not be looked at in `_faults`."""
    draw = np.random.default_rng(0)
    given, constant = (draw.standard_normal(shape).astype(np.float32) for shape in ((32, 64), (1, 32, 64)))
    errors = {}
    for shape in ((32, 64), (1, 32, 64)):
        tensors = [Tensor("float32", shape, name="x"), Tensor("float32", (1, 32, 64), 1)]
        tensors.append(Tensor("float32", (1, 32, 64), name="sum"))
        operator = Operator("ADD", 1, (0, 1), (2,))
        model = _write(tmp_path / "sum.tflite", tensors, operator, [0], [Data(constant.nbytes, lambda: constant)])
        np.savez(tmp_path / "inputs.npz", x=given.reshape(shape))
        done = _run("on_gpu.py", model, "serve", tmp_path / "inputs.npz", tmp_path / "sum.npz", "gpu")
        errors[len(shape)] = float(np.abs(_arrays(done, tmp_path / "sum.npz")["sum"] - (given + constant)).max())
    # A float32 sum of two numbers below 4 is exact to half a step of 2**-22; a wrong element is off by a number's own size.
    assert errors[3] <= 2**-22
    assert errors[2] > 1.0


def test_a_flat_constant_is_added_wrongly_and_silently(tmp_path: Path) -> None:
    """A file of one length had its positions so. If this fails the fault was mended, and `Store.plus_rows` is not needed."""
    draw = np.random.default_rng(0)
    given, constant = (draw.standard_normal((16, 32)).astype(np.float32) for _ in range(2))
    errors = {}
    for shape in ((16, 32), (1, 16, 32)):
        tensors = [Tensor("float32", shape, name="x"), Tensor("float32", shape, 1), Tensor("float32", shape, name="y")]
        operators = [Operator("ADD", 1, (0, 1), (2,))]
        model = Model("one operator", [None, Data(constant.nbytes, lambda: constant)])
        model.subgraphs.append(Subgraph("serve", tensors, operators, [0], [2]))
        write_model(model, tmp_path / "sum.tflite")
        np.savez(tmp_path / "inputs.npz", x=given.reshape(shape))
        done = _run(
            "on_gpu.py", tmp_path / "sum.tflite", "serve", tmp_path / "inputs.npz", tmp_path / "y.npz", "gpu-only"
        )
        errors[len(shape)] = float(
            np.abs(_arrays(done, tmp_path / "y.npz")["y"].reshape(16, 32) - given - constant).max()
        )
    # Two float32 sums of numbers below 8 are exact to half a step of 2**-21 each.
    assert errors[3] <= 2**-21
    assert errors[2] > 1.0


def test_a_file_made_for_a_gpu_runs_there_whole(intents: Callable[..., Path], question: Path, tmp_path: Path) -> None:
    """Without the processor to fall back on, an operator that the accelerator leaves is an error: the lookup is there too."""
    bundle = intents("fp32", "gpu")
    found = {}
    for where in ("cpu", "gpu-only"):
        output = tmp_path / f"{where}.npz"
        found[where] = _arrays(
            _run("on_gpu.py", bundle / "model.tflite", f"serve_{_LENGTH}", question, output, where), output
        )
    for name, value in found["cpu"].items():
        np.testing.assert_allclose(found["gpu-only"][name], value, rtol=0, atol=_bound(bundle, "tflite"))
    assert _faults(bundle / "model.tflite") == []


def test_a_matrix_times_itself_ends_the_process(tmp_path: Path) -> None:
    """If this fails the fault was mended."""
    matrix = np.eye(8, dtype=np.float32)[None]
    np.savez(tmp_path / "inputs.npz", x=matrix)
    tensors = [Tensor("float32", (1, 8, 8), name="x"), Tensor("float32", (1, 8, 8), name="y")]
    operator = Operator("BATCH_MATMUL", 1, (0, 0), (1,), ("BatchMatMulOptions", {}))
    model = _write(tmp_path / "square.tflite", tensors, operator, [0], [])
    output = tmp_path / "y.npz"
    np.testing.assert_array_equal(
        _arrays(_run("on_gpu.py", model, "serve", tmp_path / "inputs.npz", output, "cpu"), output)["y"], matrix
    )
    done = _run("on_gpu.py", model, "serve", tmp_path / "inputs.npz", tmp_path / "z.npz", "gpu")
    assert done.returncode != 0
    assert not (tmp_path / "z.npz").exists()
    assert "already a consumer of the value" in done.stderr


@pytest.mark.parametrize("recipe", ["fp32", "int8", "static_wi8_ai8"])
def test_our_encoders_hold_neither(intents: Callable[[str], Path], recipe: str) -> None:
    assert _faults(intents(recipe) / "model.tflite") == []


def test_our_language_models_hold_neither(stories: Path) -> None:
    assert _faults(stories / "model.tflite") == []


def _faults(path: Path) -> list[str]:
    """Return the operators of a file that the GPU computes wrongly, or that end the process."""
    found = []
    for graph in read_graphs(path):
        for index, operation in enumerate(graph.operations):
            tensors = [tensor for tensor in operation.inputs if tensor is not None]
            if operation.name in _ELEMENTWISE and len({len(tensor.shape) for tensor in tensors}) > 1:
                found.append(f"{graph.name} {index} {operation.name}: ranks differ")
            if operation.name in _ELEMENTWISE and any(
                tensor.constant_bytes is not None and len(tensor.shape) == 2 and tensor.shape[0] > 1
                for tensor in tensors
            ):
                found.append(f"{graph.name} {index} {operation.name}: a flat constant")
            if operation.name == "BATCH_MATMUL" and tensors[0] is tensors[1]:
                found.append(f"{graph.name} {index} BATCH_MATMUL: twice the same")
    return found
