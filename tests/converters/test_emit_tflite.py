from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit import tflite_file
from edgelm_converters.emit.tflite import emit_tflite, operator_histogram
from edgelm_converters.spec import TransformerSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import forward
from spec_factory import random_inputs, random_spec

from edgelm.errors import ConversionError, ModelError, RecipeError

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

RECIPES = ("fp32", "fp16", "dynamic_wi8_afp32")

# The largest error, as a share of the largest output. About 10 products a layer follow each other in the two layers, and
# their errors add up like a random walk, sqrt(20) = 4.5.
# fp32: a sum of up to 256 terms is off by about sqrt(256) * 2^-24 = 1e-6.
# fp16: a weight is off by at most 2^-11 = 5e-4.
# int8: weights and activations by at most half of 1/127 of a row's largest, 0.4 % each, of values that are typically a third
# of it: 1.2 % each; outputs that cancel to a third of their terms then show 4.5 * 1.7 % = 8 %.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "dynamic_wi8_afp32": 0.08}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first": {"pooling": "first"},
    "first, shared layers": {"pooling": "first", "shared_layers": True, "layers": 3},
    "first, pre-norm": {"pooling": "first", "norm_placement": "pre", "final_norm": True},
    "first, causal, grouped": {"pooling": "first", "causal": True, "heads": 4, "kv_heads": 2},
    "max": {"pooling": "max"},
    "max, unmasked": {"pooling": "max", "pooling_masked": False},
    "mean, unmasked": {"pooling_masked": False},
    "sequence": {"pooling": "none", "head": (), "output": "raw"},
    "sequence of classes": {"pooling": "none"},
    "no mask": {"mask": "none"},
    "mask input, segments": {"mask": "input", "segments": 2},
    "pre-norm": {"norm_placement": "pre", "final_norm": True},
    "rms, gated, grouped, causal": {
        "norm": "rms", "norm_placement": "pre", "gated": True, "activation": "silu", "heads": 4, "kv_heads": 1,
        "causal": True, "biases": False,
    },
    "no biases": {"biases": False},
    "wide heads": {"head_dim": 12},
    "narrow embeddings": {"embedding_width": 24, "token_scale": 4.0},
    "no positions, no norm": {"positions": None, "embedding_norm": False, "token_scale": 2.0},
    "relu": {"activation": "relu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "tanh": {"activation": "tanh"},
    "linear": {"activation": "linear"},
    "sigmoid": {"activation": "sigmoid", "output": "sigmoid"},
    "probabilities": {"output": "probabilities"},
    "embedding": {"head": (), "output": "embedding"},
    "gated gelu": {"gated": True, "activation": "gelu"},
}  # fmt: skip


def _spec(**options: Any) -> TransformerSpec:
    # Wide enough for every kernel and table to be quantised.
    return random_spec(**({"width": 64, "feed_forward": 128, "vocabulary": 100} | options))


def _run(path: Path, spec: TransformerSpec, inputs: dict[str, Any]) -> np.ndarray:
    length = inputs[spec.token_input].shape[1]
    runner = interpreter.Interpreter(str(path), num_threads=1).get_signature_runner(f"serve_{length}")
    return np.array(runner(**inputs)[spec.output_name])


def _error(spec: TransformerSpec, answer: np.ndarray, inputs: dict[str, Any], real: int | None) -> float:
    """Return the largest error over the rows of real tokens, as a share of the largest output."""
    expected = forward(spec, inputs)
    assert answer.shape == expected.shape
    if spec.head.pooling == "none":
        answer, expected = answer[:, :real], expected[:, :real]
    return float(np.abs(answer - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_computes_what_the_definitions_say(name: str, recipe: str, tmp_path: Path) -> None:
    spec = _spec(**OPTIONS[name])
    path = tmp_path / "model.tflite"
    signatures = emit_tflite(spec, path, recipe=recipe, lengths=(16, 8))
    assert [signature.name for signature in signatures] == ["serve_8", "serve_16"]
    real = None if spec.mask == "none" or not spec.head.pooling_masked else 6
    for signature in signatures:
        inputs = random_inputs(spec, signature.sequence_length or 0, real=real)
        assert _error(spec, _run(path, spec, inputs), inputs, real) < TOLERANCE[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_compiled_model_agrees(recipe: str, tmp_path: Path) -> None:
    compiled = pytest.importorskip("ai_edge_litert.compiled_model")
    spec = _spec(mask="input", segments=2, pooling="first")
    path = tmp_path / "model.tflite"
    emit_tflite(spec, path, recipe=recipe, lengths=(8, 16))
    model = compiled.CompiledModel.from_file(str(path))
    inputs = random_inputs(spec, 16, real=9)
    index = model.get_signature_index("serve_16")
    order = model.get_signature_list()["serve_16"]["inputs"]
    buffers, outputs = model.create_input_buffers(index), model.create_output_buffers(index)
    for name, buffer in zip(order, buffers, strict=True):
        buffer.write(inputs[name])
    model.run_by_index(index, buffers, outputs)
    answer = np.array(outputs[0].read(5, np.float32))[None]
    assert _error(spec, answer, inputs, None) < TOLERANCE[recipe]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.integers(1, 5),
    head_dim=st.integers(1, 9),
    width=st.integers(1, 40),
    feed_forward=st.integers(1, 40),
    length=st.integers(1, 19),
    real=st.integers(1, 19),
    pooling=st.sampled_from(["first", "mean", "max", "none"]),
    placement=st.sampled_from(["pre", "post"]),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_size_works(
    heads: int, head_dim: int, width: int, feed_forward: int, length: int, real: int, pooling: str, placement: str,
    causal: bool, seed: int, tmp_path: Path,
) -> None:  # fmt: skip
    spec = random_spec(
        heads=heads, head_dim=head_dim, width=width, feed_forward=feed_forward, pooling=pooling,
        norm_placement=placement, causal=causal, seed=seed, eps=1e-3,
    )  # fmt: skip
    path = tmp_path / "model.tflite"
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    emit_tflite(spec, path, recipe="fp32", lengths=(length,))
    real = min(real, length)
    inputs = random_inputs(spec, length, real=real, seed=seed)
    # A norm of a few nearly equal values divides by little more than sqrt(eps) = 0.03: 30 times the rounding.
    assert _error(spec, _run(path, spec, inputs), inputs, real) < 30 * TOLERANCE["fp32"]


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
@pytest.mark.parametrize("mask", ["input", "nonzero"])
@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_padding_changes_nothing(mask: str, pooling: str, recipe: str, tmp_path: Path) -> None:
    spec = _spec(mask=mask, pooling=pooling)
    path = tmp_path / "model.tflite"
    emit_tflite(spec, path, recipe=recipe, lengths=(7, 16, 33))
    answers = [_run(path, spec, random_inputs(spec, length, real=7)) for length in (7, 16, 33)]
    for answer in answers[1:]:
        # The same numbers summed in another order: each row is quantised by itself, padding has the weight 0.
        np.testing.assert_allclose(answer, answers[0], rtol=0, atol=1e-5 if recipe == "fp32" else 1e-3)


@pytest.mark.parametrize("pooling", ["first", "max", "none"])  # the mean of no tokens is 0 / 0, in Keras too
def test_padding_alone_gives_no_nan(pooling: str, tmp_path: Path) -> None:
    spec = _spec(mask="input", pooling=pooling)
    path = tmp_path / "model.tflite"
    emit_tflite(spec, path, recipe="fp32", lengths=(8,))
    assert np.isfinite(_run(path, spec, random_inputs(spec, 8, real=0))).all()


@pytest.mark.parametrize("recipe", [*RECIPES, "weight_only_wi8_afp32", "dynamic_wi4b64_afp32"])
@pytest.mark.parametrize("name", OPTIONS)
def test_all_but_the_gathering_is_one_xnnpack_partition(name: str, recipe: str, tmp_path: Path) -> None:
    spec = _spec(**OPTIONS[name])
    path = tmp_path / "model.tflite"
    emit_tflite(spec, path, recipe=recipe, lengths=(8,))
    opened = interpreter.Interpreter(str(path), num_threads=1)
    opened.allocate_tensors()
    *operators, delegate = opened._get_ops_details()
    assert delegate["op_name"] == "DELEGATE"
    assert "DELEGATE" not in {operator["op_name"] for operator in operators}
    assert set(delegate["outputs"]) == {opened.get_output_details()[0]["index"]}
    # What the delegate reads, and did not compute itself, comes from operators outside of it.
    makers = {output: operator for operator in operators for output in operator["outputs"]}
    shapes = {detail["index"]: tuple(detail["shape"]) for detail in opened.get_tensor_details()}
    outside: set[str] = set()
    waiting = [makers[index] for index in delegate["inputs"] if index in makers]
    while waiting:
        operator = waiting.pop()
        outside.add(operator["op_name"])
        if operator["op_name"] == "DEQUANTIZE" and operator["inputs"][0] not in makers:
            assert shapes[operator["inputs"][0]][-1] == 1  # the scales of a table's rows: no whole kernel or table
        waiting += [makers[index] for index in operator["inputs"] if index in makers]
    assert outside <= {"RESHAPE", "GATHER", "CAST"} | ({"BITCAST", "DEQUANTIZE"} if recipe != "fp32" else set())


@pytest.mark.parametrize("recipe", RECIPES)
def test_signatures_are_those_of_the_file(recipe: str, tmp_path: Path) -> None:
    spec = _spec(mask="input", segments=3, pooling="none")
    path = tmp_path / "model.tflite"
    signatures = emit_tflite(spec, path, recipe=recipe, lengths=(4, 8))
    opened = interpreter.Interpreter(str(path))
    listed = opened.get_signature_list()
    assert list(listed) == [signature.name for signature in signatures]
    for signature in signatures:
        runner = opened.get_signature_runner(signature.name)
        for ports, details in (
            (signature.inputs, runner.get_input_details()), (signature.outputs, runner.get_output_details())
        ):  # fmt: skip
            assert {port.name: (port.shape, port.dtype) for port in ports} == {
                name: (tuple(detail["shape"]), np.dtype(detail["dtype"]).name) for name, detail in details.items()
            }
    assert [port.role for port in signatures[0].inputs] == ["token_ids", "padding_mask", "segment_ids"]


def _size(spec: TransformerSpec, path: Path, recipe: str, lengths: tuple[int, ...]) -> int:
    emit_tflite(spec, path, recipe=recipe, lengths=lengths)
    return path.stat().st_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_lengths_share_the_weights(recipe: str, tmp_path: Path) -> None:
    spec = random_spec(width=128, heads=4, feed_forward=512, vocabulary=3000, positions=128)
    path = tmp_path / "model.tflite"
    one = _size(spec, path, recipe, (128,))
    four = _size(spec, path, recipe, (16, 32, 64, 128))
    assert four - one < 12_000  # three more graphs of 90 operators, most of which are shared too


def test_int8_is_a_quarter(tmp_path: Path) -> None:
    spec = random_spec(width=128, heads=4, feed_forward=512, vocabulary=6000, positions=128, pooling="first")
    path = tmp_path / "model.tflite"
    full, half, quarter = (_size(spec, path, recipe, (16, 32, 64, 128)) for recipe in RECIPES)
    assert half < 0.51 * full
    assert quarter < 0.25 * 1.05 * full


def test_shared_layers_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    sizes = [
        _size(_spec(layers=layers, shared_layers=True, pooling="first"), path, "dynamic_wi8_afp32", (16,))
        for layers in (2, 6)
    ]
    layer = 4 * 64 * 64 + 2 * 64 * 128
    assert sizes[1] - sizes[0] < layer / 2  # four more layers: operators, and no weights


def _graphs(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def test_first_pooling_computes_one_row_in_the_last_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    rows = {}
    for pooling in ("first", "mean"):
        emit_tflite(_spec(pooling=pooling, head=()), path, recipe="fp32", lengths=(16,))
        model = _graphs(path)
        rows[pooling] = Counter(
            int(model.subgraphs[0].tensors[operator.outputs[0]].shape[0])
            for operator in model.subgraphs[0].operators
            if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
        )
    assert rows["mean"] == {16: 8}
    assert rows["first"] == {16: 5, 1: 4}  # of the last layer only keys and values are computed for all tokens


@pytest.mark.parametrize("name", OPTIONS)
def test_both_sides_of_arithmetic_have_one_rank(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    emit_tflite(_spec(**OPTIONS[name]), path, recipe="dynamic_wi8_afp32", lengths=(16,))
    model = _graphs(path)
    binary = {getattr(schema.BuiltinOperator, kind) for kind in ("ADD", "SUB", "MUL", "DIV", "MINIMUM")}
    for operator in model.subgraphs[0].operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode in binary:
            shapes = [model.subgraphs[0].tensors[index].shape for index in operator.inputs]
            assert len(shapes[0]) == len(shapes[1])


@pytest.mark.parametrize(
    ("recipe", "version"),
    [
        ("fp32", "2.9.0"),
        ("fp16", "2.13.0"),
        ("weight_only_wi8_afp32", "2.9.0"),
        ("dynamic_wi8_afp32", "2.17.0"),
        ("dynamic_wi4b32_afp32", "2.17.0"),
    ],
)
def test_minimum_runtime_version_is_true(recipe: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    emit_tflite(_spec(), path, recipe=recipe, lengths=(16,))
    model = _graphs(path)
    (metadata,) = model.metadata
    assert metadata.name == b"min_runtime_version"
    assert bytes(model.buffers[metadata.buffer].data).rstrip(b"\0").decode() == version


def test_weights_are_aligned(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    emit_tflite(_spec(), path, recipe="dynamic_wi8_afp32", lengths=(16,))
    content = np.frombuffer(path.read_bytes(), np.uint8)
    model = schema.Model.GetRootAs(content, 0)
    for index in range(1, model.BuffersLength()):
        data = model.Buffers(index).DataAsNumpy()
        assert (data.ctypes.data - content.ctypes.data) % 16 == 0


def test_histogram_counts_what_the_interpreter_sees(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    emit_tflite(_spec(), path, recipe="fp32", lengths=(8, 16))
    opened = interpreter.Interpreter(
        str(path), experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    assert operator_histogram(path) == Counter(detail["op_name"] for detail in opened._get_ops_details())


def test_histogram_names_custom_operators(tmp_path: Path) -> None:
    import flatbuffers

    model = schema.ModelT(version=3)
    code = schema.OperatorCodeT(customCode="FlexErf", builtinCode=schema.BuiltinOperator.CUSTOM)
    old = schema.OperatorCodeT(deprecatedBuiltinCode=schema.BuiltinOperator.ADD)
    model.operatorCodes = [code, old]
    operators = [schema.OperatorT(opcodeIndex=index, inputs=[], outputs=[]) for index in (0, 0, 1)]
    model.subgraphs = [schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=operators)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "model.tflite"
    path.write_bytes(builder.Output())
    assert operator_histogram(path) == {"ADD": 1, "CUSTOM:FlexErf": 2}


def test_histogram_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    for content in (b"", b"not a model at all"):
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=r"model\.tflite is not a TFLite file"):
            operator_histogram(path)


def test_refuses_what_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tflite"
    spec = random_spec(positions=32)
    with pytest.raises(RecipeError, match=r"No recipe is called 'fp23'\. Did you mean 'fp32'"):
        emit_tflite(spec, path, recipe="fp23", lengths=(16,))
    with pytest.raises(ConversionError, match=r"at most 32 tokens, not 64"):
        emit_tflite(spec, path, recipe="fp32", lengths=(16, 64))
    for lengths in ((), (0, 16)):
        with pytest.raises(ConversionError, match=f"at least 1, and was given {re.escape(str(lengths))}"):
            emit_tflite(spec, path, recipe="fp32", lengths=lengths)
    monkeypatch.setattr(tflite_file, "_LARGEST_FILE", 10_000)
    with pytest.raises(ConversionError, match=r"model\.tflite would take .* GB"):
        emit_tflite(spec, path, recipe="fp32", lengths=(16,))


def test_refuses_broken_weights(tmp_path: Path) -> None:
    spec = _spec()
    token = spec.embeddings.token.copy()
    token[0, 0] = np.inf
    broken = replace(spec, embeddings=replace(spec.embeddings, token=token))
    with pytest.raises(ModelError, match=r"embeddings\.token .* 1 NaN or infinite"):
        emit_tflite(broken, tmp_path / "model.tflite", recipe="fp32", lengths=(16,))
    token[0, 0] = 1e5
    with pytest.raises(RecipeError, match=r"reaches 1e\+05, and float16 ends at 65504"):
        emit_tflite(broken, tmp_path / "model.tflite", recipe="fp16", lengths=(16,))


def test_needs_no_training_framework(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from edgelm_converters.emit.tflite import emit_tflite\n"
        "from spec_factory import random_spec\n"
        f"emit_tflite(random_spec(), pathlib.Path({str(tmp_path / 'm.tflite')!r}), recipe='fp32', lengths=(8,))\n"
        "assert not {'tensorflow', 'keras', 'torch', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
