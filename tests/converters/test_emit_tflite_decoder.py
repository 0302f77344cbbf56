from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit import tflite_decoder, tflite_file
from edgelm_converters.emit.notes import decoder_notes
from edgelm_converters.emit.tflite import operator_histogram
from edgelm_converters.emit.tflite_decoder import default_caches, default_prefill, emit_tflite_decoder
from edgelm_converters.emit.tflite_graph import Graph, Weights
from edgelm_converters.emit.tflite_weights import Store, plain
from edgelm_converters.recipes import RECIPES as ALL_RECIPES
from edgelm_converters.spec import Linear, Stack, TransformerSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_spec

from edgelm.bundle.manifest import Signature
from edgelm.errors import ConversionError, ModelError, RecipeError

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

RECIPES = ("fp32", "fp16", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32")

# The largest error, as a share of the largest score. The products of a model follow each other, about 10 in the two layers, and
# their errors add up like a random walk, sqrt(10) = 3.
# fp32: a sum of up to 128 terms is off by about sqrt(128) * 2^-24 = 7e-7, and so are the angles of the rotation.
# fp16: a weight is off by at most 2^-11 = 5e-4.
# int8: weights and activations by half of 1/127 of a row's largest, which is three times the typical value: 1.2 % each, 1.7 %
# together; 3 * 1.7 % = 5 %, and 8 % where what is left after cancelling is smaller.
# int4: the step of a block is its largest value (2.2 deviations of 32 normal values) / 7.5, the error step / sqrt(12) = 8.5 %
# of a deviation; 3 * 8.5 % = 25 % of the typical score, a third of the largest; the worst of 2,000 is 3.5 times off.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "dynamic_wi8_afp32": 0.08, "dynamic_wi4b32_afp32": 0.35}

OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one key head": {"kv_heads": 1},
    "gpt-2": {
        "norm": "layer", "positions": 80, "activation": "gelu_tanh", "gated": False, "biases": True, "kv_heads": 4,
    },
    "gemma 2": {
        "soft_cap": 3.0, "head_soft_cap": 8.0, "post_norms": True, "windows": (5, None), "activation": "gelu_tanh",
        "token_scale": 8.0, "head_dim": 24,
    },
    "qwen 3": {"query_key_norm": True, "head_dim": 24},
    "phi 3": {"rotary": 8, "rotary_factor": 1.2, "windows": (7,)},
    "qwen 2": {"biases": True, "tied": False},
    "head with bias": {"head_bias": True, "tied": False, "head_soft_cap": 2.0},
    "post-norm": {"norm_placement": "post", "final_norm": False, "norm": "layer"},
    "layer norm of query and key": {"norm": "layer", "query_key_norm": True},
    "relu": {"activation": "relu", "gated": False},
}  # fmt: skip


def _spec(**options: Any) -> TransformerSpec:
    # Wide enough for every kernel and table to be quantised; 96 and 64 are multiples of a block.
    return random_decoder(**({"width": 64, "feed_forward": 96, "vocabulary": 100} | options))


def _ids(spec: TransformerSpec, count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, spec.vocabulary_size, count).astype(np.int32)


class _Model:
    """A file in the plain interpreter, whose caches are carried from call to call."""

    def __init__(self, path: Path, signatures: tuple[Signature, ...]) -> None:
        self.opened = interpreter.Interpreter(str(path), num_threads=1)
        self.signatures = {signature.name: signature for signature in signatures}
        self.caches: dict[str, NDArray[np.float32]] = {}

    def run(self, name: str, ids: NDArray[np.int32], start: int) -> NDArray[np.float32] | None:
        signature = self.signatures[name]
        cache = signature.cache
        assert cache is not None
        if not self.caches:
            names = [pattern.format(i=layer) for pattern in cache.inputs for layer in range(cache.layers)]
            self.caches = {name: np.zeros(cache.shape, np.float32) for name in names}  # type: ignore[arg-type]
        tokens = np.zeros((1, signature.sequence_length or 0), np.int32)
        tokens[0, : len(ids)] = ids
        positions = np.zeros(tokens.shape[1], np.int32)  # as LiteRT-LM fills up
        positions[: len(ids)] = np.arange(start, start + len(ids))
        outputs = self.opened.get_signature_runner(name)(tokens=tokens, input_pos=positions, **self.caches)
        scores = outputs.pop("logits", None)
        assert set(outputs) == set(self.caches)
        self.caches = outputs
        return None if scores is None else scores[0, : len(ids)]


def _expected(spec: TransformerSpec, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    return forward(spec, {"token_ids": ids[None]})[0]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_computes_what_the_definitions_say(name: str, recipe: str, tmp_path: Path) -> None:
    spec = _spec(**OPTIONS[name])
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_decoder(spec, path, recipe=recipe, caches=(32,), prefill=(4, 8), verify=(5,))
    ids = _ids(spec, 21)
    expected = _expected(spec, ids)
    model = _Model(path, signatures)
    # A whole chunk, another one, a chunk whose tail is padding, single steps over that padding, several scores at once.
    calls = [("prefill_8", 0, 8), ("prefill_4", 8, 12), ("prefill_4", 12, 14), ("decode", 14, 15), ("decode", 15, 16),
             ("cache_32_verify_5", 16, 21)]  # fmt: skip
    errors = []
    for call, start, end in calls:
        scores = model.run(call, ids[start:end], start)
        if scores is not None:
            errors.append(np.abs(scores - expected[start:end]).max())
    assert len(errors) == 3
    assert max(errors) / np.abs(expected).max() < TOLERANCE[recipe]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    head_dim=st.integers(1, 5).map(lambda half: 2 * half),
    width=st.integers(8, 40),  # the norm of one or two numbers that nearly cancel magnifies any rounding
    feed_forward=st.integers(1, 40),
    count=st.integers(1, 9),
    length=st.integers(9, 24),
    window=st.none() | st.integers(1, 30),
    seed=st.integers(0, 2**16),
)
def test_every_size_works(
    groups: int, shared: int, head_dim: int, width: int, feed_forward: int, count: int, length: int, window: int | None,
    seed: int, tmp_path: Path,
) -> None:  # fmt: skip
    spec = random_decoder(
        heads=groups * shared, kv_heads=groups, head_dim=head_dim, width=width, feed_forward=feed_forward,
        windows=(window,), seed=seed, vocabulary=20,
    )  # fmt: skip
    path = tmp_path / "model.tflite"
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    signatures = emit_tflite_decoder(spec, path, recipe="fp32", caches=(length,), prefill=(count,), verify=(count,))
    ids = _ids(spec, length, seed)
    expected = _expected(spec, ids)
    model = _Model(path, signatures)
    for start in range(0, length - count + 1, count):
        scores = model.run(f"cache_{length}_verify_{count}", ids[start : start + count], start)
        assert scores is not None
        # Eight numbers may still have a length of a 30th of the usual one, whose norm magnifies the rounding 30 times.
        assert np.abs(scores - expected[start : start + count]).max() < 30 * TOLERANCE["fp32"] * np.abs(expected).max()


def test_a_shorter_cache_gives_the_same(tmp_path: Path) -> None:
    spec = _spec()
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_decoder(spec, path, recipe="fp32", caches=(32, 16), prefill=(8,))
    ids = _ids(spec, 12)
    expected = _expected(spec, ids)
    for prefix in ("", "cache_16_"):
        model = _Model(path, signatures)
        model.run(f"{prefix}prefill_8", ids[:8], 0)
        scores = [model.run(f"{prefix}decode", ids[i : i + 1], i) for i in range(8, 12)]
        assert np.abs(np.concatenate(scores) - expected[8:]).max() < TOLERANCE["fp32"] * np.abs(expected).max()


def test_far_positions_are_turned_rightly(tmp_path: Path) -> None:
    spec = _spec(layers=1, max_length=4096, windows=(16,))
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_decoder(spec, path, recipe="fp32", caches=(4096,), prefill=(64,))
    ids = _ids(spec, 17)
    # With a window as wide as what was computed, only distances count: the same tokens at the beginning give the same.
    expected = _expected(spec, ids[:16])[-1]
    model = _Model(path, signatures)
    model.run("prefill_64", ids[:15], 4000)
    scores = model.run("decode", ids[15:16], 4015)
    assert scores is not None
    # An angle of 4000 radians is off by up to 2^-13 = 1.2e-4 as a float32, in any implementation; sqrt(10) such errors add up.
    assert np.abs(scores - expected).max() < 4e-4 * np.abs(expected).max()


@pytest.mark.parametrize("recipe", RECIPES)
def test_xnnpack_takes_all_but_gathering_and_the_caches(recipe: str, tmp_path: Path) -> None:
    spec = _spec(**OPTIONS["gemma 2"])
    path = tmp_path / "model.tflite"
    emit_tflite_decoder(spec, path, recipe=recipe, caches=(16,), prefill=(8,))
    opened = interpreter.Interpreter(str(path), num_threads=1)  # of the first signature, `decode`
    opened.allocate_tensors()
    details = opened._get_ops_details()
    parts = [operator for operator in details if operator["op_name"] == "DELEGATE"]
    # What a part computes is listed beside it: what stands alone is what none of them has as its output.
    assert len(parts) <= len(spec.decoder.layers) + 1
    makers = {output: operator for operator in details for output in operator["outputs"] if operator not in parts}
    waiting = [makers[index] for part in parts for index in part["inputs"] if index in makers]
    delegated = {output for part in parts for output in part["outputs"]}
    outside: set[str] = set()
    while waiting:
        operator = waiting.pop()
        if set(operator["outputs"]) & delegated:
            continue
        outside.add(operator["op_name"])
        waiting += [makers[index] for index in operator["inputs"] if index in makers]
    assert outside <= {
        "RESHAPE", "GATHER", "CAST", "CONCATENATION", "SLICE", "DYNAMIC_UPDATE_SLICE", "BITCAST", "DEQUANTIZE",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_signatures_are_those_of_the_file(recipe: str, tmp_path: Path) -> None:
    spec = _spec()
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_decoder(spec, path, recipe=recipe, caches=(8, 16), prefill=(4, 12), verify=(3,))
    assert [(signature.name, signature.kind) for signature in signatures] == [
        ("cache_8_decode", "decode"), ("cache_8_verify_3", "verify"), ("cache_8_prefill_4", "prefill"),
        ("decode", "decode"), ("cache_16_verify_3", "verify"), ("prefill_4", "prefill"), ("prefill_12", "prefill"),
    ]  # fmt: skip
    opened = interpreter.Interpreter(str(path))
    assert list(opened.get_signature_list()) == [signature.name for signature in signatures]
    for signature in signatures:
        runner, cache = opened.get_signature_runner(signature.name), signature.cache
        assert cache is not None
        caches = {pattern.format(i=layer): (cache.shape, cache.dtype) for pattern in cache.inputs for layer in (0, 1)}
        for ports, details in (
            (signature.inputs, runner.get_input_details()), (signature.outputs, runner.get_output_details())
        ):  # fmt: skip
            assert {port.name: (port.shape, port.dtype) for port in ports} | caches == {
                name: (tuple(detail["shape"]), np.dtype(detail["dtype"]).name) for name, detail in details.items()
            }
    assert [port.role for port in signatures[0].inputs] == ["token_ids", "positions"]


def test_prefill_leaves_out_what_only_scores_need(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    emit_tflite_decoder(_spec(), path, recipe="fp32", caches=(16,), prefill=(8,))
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    products = {
        graph.name.decode(): sum(
            model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
            for operator in graph.operators
        )
        for graph in model.subgraphs
    }
    # Keys, values and queries in one; output; gate, up and down: twice, and the head. A prefill ends with the last keys.
    assert products == {"decode": 11, "prefill_8": 6}


def _size(spec: TransformerSpec, path: Path, recipe: str, caches: tuple[int, ...] = (64,)) -> int:
    emit_tflite_decoder(spec, path, recipe=recipe, caches=caches, prefill=(16,), verify=(4,))
    return path.stat().st_size


def test_sizes_are_those_of_the_recipes(tmp_path: Path) -> None:
    spec = random_decoder(width=128, feed_forward=512, vocabulary=4000, token_scale=11.0)
    path = tmp_path / "model.tflite"
    full, half, quarter, eighth = (_size(spec, path, recipe) for recipe in RECIPES)
    kernels = sum(
        linear.kernel.size
        for layer in spec.decoder.layers
        for linear in (
            layer.attention.query, layer.attention.key, layer.attention.value, layer.attention.output,
            layer.feed_forward.up, layer.feed_forward.down, layer.feed_forward.gate,
        )
        if linear is not None
    )  # fmt: skip
    table, graphs = 4000 * 128, 60_000
    assert 4 * (table + kernels) < full < 4 * (table + kernels) + graphs  # the tied head costs nothing, scaled or not
    assert half < 0.5 * full + graphs
    scales = 4000 * 6 + 4 * sum(6 * 128 + 3 * 512 for _ in spec.decoder.layers)
    assert quarter < table + kernels + scales + graphs
    assert eighth < table + scales + kernels * (0.5 + 2 / 32) + graphs


def test_cache_lengths_share_the_weights(tmp_path: Path) -> None:
    spec = random_decoder(width=128, feed_forward=512, vocabulary=3000)
    for recipe in RECIPES:
        one, three = (_size(spec, tmp_path / "model.tflite", recipe, caches) for caches in ((64,), (16, 32, 64)))
        assert three - one < 40_000  # six more graphs of up to 100 operators


def _four_bit_tensors(path: Path) -> list[NDArray[np.float64]]:
    """Return every int4 tensor of a file as floats, read by the schema's definition."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    found = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.type != schema.TensorType.INT4:
                continue
            assert tensor.quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization
            details = tensor.quantization.details
            scales = graph.tensors[details.scales]
            assert (scales.type, details.blockSize) == (schema.TensorType.FLOAT16, 32)
            packed = np.array(model.buffers[tensor.buffer].data, np.uint8)
            values = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1, 32).astype(np.int64)
            values = np.where(values > 7, values - 16, values)
            steps = np.frombuffer(bytes(model.buffers[scales.buffer].data), np.float16).astype(np.float64)
            found.append((values * steps[:, None]).reshape(tuple(tensor.shape)))
    return found


def _linear_file(path: Path, kernel: NDArray[np.float32]) -> None:
    model = tflite_file.Model("one product")
    store = Store(Weights(model), ALL_RECIPES["dynamic_wi4b32_afp32"])
    graph = Graph(store.weights, "main")
    graph.output("y", store.linear(graph, plain(Linear("linear", kernel, None)), graph.input("x", (3, 128), "float32")))
    tflite_file.write_model(model, path)


@pytest.mark.parametrize("size", [1.0, 1e-4, 0.0])
def test_four_bit_products_are_those_of_their_blocks(size: float, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    kernel = (size * generator.standard_normal((128, 48))).astype(np.float32)
    path = tmp_path / "linear.tflite"
    _linear_file(path, kernel)
    (weight,) = _four_bit_tensors(path)
    if size == 1.0:
        # A block of 32 normal values spans 7.5 steps of 2.2 deviations: step / sqrt(12) = 8.5 %, and 3 % more for its worst.
        assert np.sqrt(np.square(weight - kernel.T).mean()) < 0.115
    x = generator.standard_normal((3, 128)).astype(np.float32)
    runner = interpreter.Interpreter(str(path), num_threads=1).get_signature_runner("main")
    answer = runner(x=x)["y"]
    # XNNPACK rounds each input to one of 256 steps over the row's range, which holds 0.
    step = (np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)) / 255
    bound = step[:, None] / 2 * np.abs(weight).sum(1) + 1e-6 * size
    assert (np.abs(answer - x @ weight.T) <= bound).all()


def test_uneven_kernels_stay_int8_and_it_is_said(tmp_path: Path) -> None:
    spec = _spec(width=72, head_dim=16, feed_forward=96)
    path = tmp_path / "model.tflite"
    emit_tflite_decoder(spec, path, recipe="dynamic_wi4b32_afp32", caches=(16,), prefill=(8,))
    widths = {tensor.shape[1] for tensor in _four_bit_tensors(path)}
    assert widths == {64, 96}  # what follows the heads, and the feed-forward's hidden layer
    notes = decoder_notes(spec, "dynamic_wi4b32_afp32")
    assert any("10 kernels are int8, not int4: inputs are no multiple of 32" in note for note in notes)
    assert decoder_notes(spec, "dynamic_wi8_afp32") == ()
    assert len(decoder_notes(_spec(), "dynamic_wi4b32_afp32")) == 1


def test_histogram_and_description(tmp_path: Path) -> None:
    spec = _spec()
    path = tmp_path / "model.tflite"
    emit_tflite_decoder(spec, path, recipe="dynamic_wi8_afp32", caches=(16,), prefill=(8,))
    assert operator_histogram(path)["DYNAMIC_UPDATE_SLICE"] == 4
    assert (
        schema.ModelT.InitFromPackedBuf(path.read_bytes()).description
        == b"random, dynamic_wi8_afp32, written by edgelm"
    )


def test_both_sides_of_arithmetic_have_one_rank(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    binary = {getattr(schema.BuiltinOperator, kind) for kind in ("ADD", "SUB", "MUL", "DIV", "MINIMUM")}
    ranks: Counter[bool] = Counter()
    for options in OPTIONS.values():
        emit_tflite_decoder(_spec(**options), path, recipe="dynamic_wi8_afp32", caches=(16,), prefill=(4,))
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        for graph in model.subgraphs:
            for operator in graph.operators:
                if model.operatorCodes[operator.opcodeIndex].builtinCode in binary:
                    left, right = (graph.tensors[index].shape for index in operator.inputs)
                    ranks[len(left) == len(right)] += 1
    assert ranks[True] > 100
    assert not ranks[False]


def test_defaults_make_sense() -> None:
    assert default_caches(2048) == (256, 512, 1024, 2048)
    assert default_caches(8192) == (1024, 2048, 4096, 8192)
    assert default_caches(500) == (500,)
    assert default_prefill(2048) == (16, 128)
    assert default_prefill(20) == (16, 20)
    assert tflite_decoder.default_verify(4) == (4,)
    with pytest.raises(ConversionError, match="at least 1 token, not 0"):
        default_caches(0)


def test_refuses_what_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tflite"
    spec = _spec(max_length=32)

    def emit(spec: TransformerSpec, **options: Any) -> None:
        emit_tflite_decoder(spec, path, **({"recipe": "fp32", "caches": (16,), "prefill": (8,)} | options))

    with pytest.raises(RecipeError, match=r"No recipe is called 'fp23'\. Did you mean 'fp32'"):
        emit(spec, recipe="fp23")
    with pytest.raises(ConversionError, match=r"at most 32 positions, not 64"):
        emit(spec, caches=(16, 64))
    with pytest.raises(ConversionError, match=r"at most 20 positions, not 32"):
        emit(replace(_spec(positions=20), max_length=None), caches=(32,))
    with pytest.raises(ConversionError, match=re.escape("cache lengths of at least 1, and was given (0,)")):
        emit(spec, caches=(0,))
    with pytest.raises(ConversionError, match=re.escape("numbers of tokens of at least 1, and was given (8, 0)")):
        emit(spec, verify=(0,))
    with pytest.raises(ConversionError, match="is no language model"):
        emit(random_spec())
    first, second = spec.decoder.layers
    other = _spec(kv_heads=1, max_length=32).decoder.layers[0]
    with pytest.raises(ConversionError, match="caches of different shapes"):
        emit(replace(spec, decoder=Stack((first, other), spec.decoder.final_norm)))
    assert second is not first
    monkeypatch.setattr(tflite_file, "_LARGEST_FILE", 10_000)
    with pytest.raises(ConversionError, match=r"model\.tflite would take .* GB"):
        emit(spec)


def test_refuses_broken_weights(tmp_path: Path) -> None:
    spec = _spec()
    table = spec.embeddings.token.copy()
    table[3, 5] = np.nan
    broken = replace(spec, embeddings=replace(spec.embeddings, token=table))
    with pytest.raises(ModelError, match=r"embeddings\.token .* 1 NaN or infinite"):
        emit_tflite_decoder(broken, tmp_path / "model.tflite", recipe="fp32", caches=(16,), prefill=(8,))
    table[3, 5] = 1e5
    with pytest.raises(RecipeError, match=r"reaches 1e\+05, and float16 ends at 65504"):
        emit_tflite_decoder(broken, tmp_path / "model.tflite", recipe="fp16", caches=(16,), prefill=(8,))
