"""Our static int8 ONNX file on a Hexagon NPU: Qualcomm's emulator of the HTP, x86-64, through ONNX Runtime's QNN plugin.

The emulator computes what the chip computes, and takes seconds for what takes the chip milliseconds: *executed*, never timed.
Of the form for processors the lookup of the embedding and the last conversion to float32 stay on the processor, so the file is
cut between them: what is between has to run on the HTP without an exception, which only a run with the fallback disabled
proves. A file that is made for the NPU (``--for npu-qnn``) has to run there whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from lanes import CACHE

pytestmark = pytest.mark.devices
LANE = "npu"

_HERE = Path(__file__).parent
_LENGTH = 16


def _run(model: Path, inputs: Path, output: Path, where: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(CACHE / "npu/site-packages"))
    command = [sys.executable, str(_HERE / "on_provider.py"), str(model), str(inputs), str(output), where]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


@dataclass(frozen=True)
class _Parts:
    """The file's middle, and what goes into it."""

    middle: Path
    inputs: Path
    scale: float


@pytest.fixture
def parts(intents: Callable[[str], Path], tmp_path: Path) -> _Parts:
    """Cut the file behind the embedding's lookup and before the last conversion."""
    model = onnx.shape_inference.infer_shapes(onnx.load(intents("static_wi8_ai8") / "model.onnx"))
    nodes = list(model.graph.node)
    lookup = next(node for node in nodes if node.op_type == "Gather" and node.input[0] == "embeddings/token")
    converted = next(node for node in nodes if lookup.output[0] in node.input)
    scaled = next(node for node in nodes if converted.output[0] in node.input)
    last = nodes[-1]
    assert last.op_type == "DequantizeLinear"
    cutter = onnx.utils.Extractor(model)
    onnx.save(cutter.extract_model([scaled.output[0], "token_ids"], [last.input[0]]), tmp_path / "middle.onnx")
    head = cutter.extract_model(["token_ids"], [scaled.output[0]]).SerializeToString()
    ids = np.random.default_rng(0).integers(5, 1000, (1, _LENGTH)).astype(np.int32)
    (rows,) = onnxruntime.InferenceSession(head, providers=["CPUExecutionProvider"]).run(None, {"token_ids": ids})
    np.savez(tmp_path / "inputs.npz", **{"token_ids": ids, scaled.output[0]: rows})
    constants = {constant.name: constant for constant in model.graph.initializer}
    return _Parts(
        tmp_path / "middle.onnx", tmp_path / "inputs.npz", float(onnx.numpy_helper.to_array(constants[last.input[1]]))
    )


def _logits(path: Path, scale: float) -> np.ndarray:
    with np.load(path) as arrays:
        (codes,) = arrays.values()
    return codes.astype(np.float32) * scale


def test_the_htp_runs_everything_between_lookup_and_answer(parts: _Parts, tmp_path: Path) -> None:
    here = _run(parts.middle, parts.inputs, tmp_path / "cpu.npz", "cpu")
    assert here.returncode == 0, here.stderr[-2000:]
    there = _run(parts.middle, parts.inputs, tmp_path / "qnn.npz", "qnn")
    assert there.returncode == 0, there.stderr[-2000:]
    assert "QNNExecutionProvider" in there.stdout
    wanted, found = _logits(tmp_path / "cpu.npz", parts.scale), _logits(tmp_path / "qnn.npz", parts.scale)
    assert found.argmax() == wanted.argmax()
    # The HTP has its own kernels for norms, softmax and GELU, so each rounding to int8 may go to the next step, up or down:
    # that many steps add up like a random walk, at gains of about one. Twice its deviation is allowed; measured: 3 and 5
    # steps for two calibrations.
    roundings = sum(node.op_type == "QuantizeLinear" for node in onnx.load(parts.middle).graph.node)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2 * np.sqrt(roundings) * parts.scale)


def test_the_compiled_context_gives_the_same_answer(parts: _Parts, tmp_path: Path) -> None:
    first = _run(parts.middle, parts.inputs, tmp_path / "qnn.npz", "qnn")
    assert first.returncode == 0, first.stderr[-2000:]
    assert (tmp_path / "context_qnn.bin").stat().st_size > 100_000  # the weights, 0.5 MB
    again = _run(tmp_path / "context.onnx", parts.inputs, tmp_path / "again.npz", "qnn-context")
    assert again.returncode == 0, again.stderr[-2000:]
    np.testing.assert_array_equal(_logits(tmp_path / "again.npz", 1.0), _logits(tmp_path / "qnn.npz", 1.0))


def test_the_htp_runs_a_file_made_for_it_whole(intents: Callable[..., Path], tmp_path: Path) -> None:
    """From ids to the answer in int8, with the processor as fallback disabled."""
    model = intents("static_wi8_ai8", "npu-qnn") / "model.onnx"
    ids = np.random.default_rng(0).integers(5, 1000, (1, _LENGTH)).astype(np.int32)
    np.savez(tmp_path / "ids.npz", token_ids=ids)
    found = {}
    for where in ("cpu", "qnn"):
        done = _run(model, tmp_path / "ids.npz", tmp_path / f"{where}.npz", where)
        assert done.returncode == 0, done.stderr[-2000:]
        found[where] = _logits(tmp_path / f"{where}.npz", 1.0)
    assert "QNNExecutionProvider" in done.stdout
    assert found["qnn"].argmax() == found["cpu"].argmax()
    # As above: steps that add up like a random walk, of which twice the deviation is allowed.
    roundings = sum(node.op_type == "QuantizeLinear" for node in onnx.load(model).graph.node)
    np.testing.assert_allclose(found["qnn"], found["cpu"], rtol=0, atol=2 * np.sqrt(roundings))


def test_the_processors_form_is_refused_without_a_fallback_as_it_looks_tokens_up(
    intents: Callable[[str], Path], tmp_path: Path
) -> None:
    """If this fails, the lookup of rows with a scale each runs on the HTP, and the form for accelerators is needed less."""
    ids = np.random.default_rng(0).integers(5, 1000, (1, _LENGTH)).astype(np.int32)
    np.savez(tmp_path / "ids.npz", token_ids=ids)
    done = _run(intents("static_wi8_ai8") / "model.onnx", tmp_path / "ids.npz", tmp_path / "out.npz", "qnn")
    assert done.returncode != 0
    assert "fallback to CPU EP has been explicitly disabled" in done.stderr
