from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit import onnx_decoder
from edgelm_converters.emit.blocks import quantize_blocks
from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
from edgelm_converters.emit.onnx_file import operator_histogram
from edgelm_converters.emit.quantize import quantize_weight
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Float32, Grid, Layer, Linear, Stack, TransformerSpec
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_spec
from stored import form_of

from edgelm.bundle import CacheRecord, Port, Signature
from edgelm.errors import ConversionError, ModelError, RecipeError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

CONTEXT = 40
INT8, INT4, WEIGHTS8 = "dynamic_wi8_afp32", "dynamic_wi4b32_afp32", "weight_only_wi8_afp32"
NAMES = [recipe.name for recipe in RECIPES.values() if not recipe.static]
DYNAMIC = [name for name in NAMES if RECIPES[name].activations == "dynamic"]

# Wide enough for matrices of 4096 elements, which is where fp16 and int8 begin; heads of 16 are not filled up.
WIDE: dict[str, Any] = {"width": 96, "heads": 6, "feed_forward": 128, "vocabulary": 200}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a key head for each query": {"kv_heads": 6},
    "one key head": {"kv_heads": 1},
    "biases": {"biases": True},
    "query and key norms": {"query_key_norm": True},
    "gpt2": {"norm": "layer", "positions": 64, "biases": True, "gated": False, "activation": "gelu_tanh"},
    "gemma2": {
        "post_norms": True, "soft_cap": 5.0, "head_soft_cap": 3.0, "windows": (3, None), "token_scale": 9.8,
        "activation": "gelu_tanh",
    },
    "every layer a window": {"windows": (4,)},
    "wide heads": {"head_dim": 32},
    "post-norm": {"norm_placement": "post", "norm": "layer", "final_norm": False},
    "own head": {"tied": False, "head_bias": True},
    "no rotary": {"rotary": None},
    "scaled rotary": {"rotary_factor": 1.3},
    "relu": {"activation": "relu", "gated": False},
    "one layer": {"layers": 1},
}  # fmt: skip

# Widths that GroupQueryAttention does not take, or turns otherwise.
FILLED_UP: dict[str, dict[str, Any]] = {
    "narrow heads": {"head_dim": 8},
    "heads of 10": {"head_dim": 10},
    "heads of 12, no rotary": {"head_dim": 12, "rotary": None, "biases": True},
    "a part is turned": {"head_dim": 32, "rotary": 12, "rotary_factor": 1.2},
    "a part of a narrow head": {"head_dim": 20, "rotary": 6, "biases": True},
    "norms of narrow heads": {"head_dim": 10, "rotary": 4, "query_key_norm": True},
    "layer norms of narrow heads": {"head_dim": 12, "query_key_norm": True, "norm": "layer"},
    "no block divides the width": {"width": 90, "head_dim": 15, "rotary": 14},
}


def session(path: Path, **options: Any) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    for key, value in options.items():
        setattr(settings, key, value)
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def empty_cache(signature: Signature, batch: int = 1) -> dict[str, NDArray[np.float32]]:
    cache = signature.cache
    assert cache is not None
    names = [name.replace("{i}", str(index)) for index in range(cache.layers) for name in cache.inputs]
    shape = (batch, cache.shape[1] or 0, 0, cache.shape[3] or 0)
    return {name: np.zeros(shape, np.float32) for name in names}


def scores(opened: Any, signature: Signature, ids: NDArray[np.int64], *calls: tuple[int, int | None]) -> list[Any]:
    """Run calls of (tokens, scores wanted; None: not said), one after the other; return each one's scores."""
    past, at, results = empty_cache(signature, len(ids)), 0, []
    for tokens, wanted in calls:
        feed = {
            "input_ids": ids[:, at : at + tokens],
            "attention_mask": np.ones((len(ids), at + tokens), np.int64),
            **past,
        }
        if wanted is not None:
            feed["logits_count"] = np.array([wanted])
        answer, *present = opened.run(None, feed)
        past = dict(zip(past, present, strict=True))
        at += tokens
        results.append((answer, slice(at - (1 if wanted is None else wanted), at)))
    return results


def relative_error(
    path: Path, signature: Signature, spec: TransformerSpec, reference: TransformerSpec | None = None
) -> float:
    """Return the largest error over a prompt in chunks and single tokens, as a share of the largest expected score."""
    ids = np.random.default_rng(0).integers(1, spec.vocabulary_size, (1, 17))
    expected = forward(reference or spec, {spec.token_input: ids})
    errors = [0.0]
    for answer, rows in scores(session(path), signature, ids, (5, 5), (4, 0), (3, 2), (1, 1), (1, None), (3, None)):
        assert answer.dtype == np.float32
        assert answer.shape == expected[:, rows].shape
        if answer.size:
            errors.append(float(np.abs(answer - expected[:, rows]).max()))
    return max(errors) / float(np.abs(expected).max())


def stored(spec: TransformerSpec, recipe: str) -> TransformerSpec:
    """Return the spec with each matrix as the recipe stores it: what is left are activations and their rounding."""
    rule = RECIPES[recipe]

    def rounded(weight: Float32, form: str) -> Float32:
        if form == "float32":
            return weight
        if form == "float16":
            return weight.astype(np.float16).astype(np.float32)
        if form == "int4":
            assert rule.block is not None
            values, scale = quantize_blocks(weight, bits=4, block=rule.block, positive=False)
            return (values.reshape(*scale.shape, rule.block) * scale[..., None]).reshape(values.shape).T
        block = len(weight)
        if rule.activations == "dynamic":
            block = next(size for size in (128, 64, 32, 16) if len(weight) % size == 0)
        steps, scales = quantize_weight(np.ascontiguousarray(weight.T).reshape(-1, block), axis=0)
        return (steps * scales[:, None]).reshape(weight.T.shape).T

    def linear(read: Linear, *beside: Linear) -> Linear:
        # Queries, keys and values are large together.
        shape = len(read.kernel), sum(part.kernel.shape[1] for part in (read, *beside))
        return replace(read, kernel=rounded(read.kernel, form_of(recipe, read.least_bits, shape)))

    def table(read: Float32, least_bits: int) -> Float32:
        return rounded(read.T, form_of(recipe, max(8, least_bits), read.shape)).T

    def layer(read: Layer) -> Layer:
        attention, block = read.attention, read.feed_forward
        query, key, value = attention.query, attention.key, attention.value
        attention = replace(
            attention,
            query=linear(query, key, value),
            key=linear(key, query, value),
            value=linear(value, query, key),
            output=linear(attention.output),
        )
        gate = None if block.gate is None else linear(block.gate)
        block = replace(block, up=linear(block.up), down=linear(block.down), gate=gate)
        return replace(read, attention=attention, feed_forward=block)

    parts, head = spec.embeddings, spec.head.tokens
    assert head is not None
    position = None if parts.position is None else table(parts.position, parts.least_bits)
    return replace(
        spec,
        embeddings=replace(parts, token=table(parts.token, parts.least_bits), position=position),
        decoder=replace(spec.decoder, layers=tuple(layer(read) for read in spec.decoder.layers)),
        head=replace(spec.head, tokens=replace(head, table=table(head.table, head.least_bits))),
    )


def mixed(spec: TransformerSpec) -> TransformerSpec:
    """Return a model some of whose pieces may not be stored as narrow as the others."""
    first, *others = spec.decoder.layers
    attention, block, head = first.attention, first.feed_forward, spec.head.tokens
    assert head is not None
    attention = replace(
        attention,
        query=replace(attention.query, least_bits=16),
        value=replace(attention.value, least_bits=8),
        output=replace(attention.output, least_bits=8),
    )
    first = replace(first, attention=attention, feed_forward=replace(block, down=replace(block.down, least_bits=16)))
    return replace(
        spec,
        embeddings=replace(spec.embeddings, least_bits=16),
        decoder=replace(spec.decoder, layers=(first, *others)),
        head=replace(spec.head, tokens=replace(head, least_bits=16)),
    )


# Of the error against the weights in the file, as a share of the largest score.
# Float arithmetic: float32 sums, as in `test_float32_is_the_reference`.
# Activations of 8 bits: the largest of a block of 32 to 128 lies at some 2.5 sigma and is cut into 127 steps, an error of
# 2.5 / 127 / sqrt(12) = 0.57 % of sigma each, and the same share of each product; 9 products in a row add up to 1.7 %, the
# extreme of 200 scores is at 3 sigma. A score's cap, norms behind the layers and short sums make it up to twice as much.
BOUND = {"float32": 2.7e-5, "dynamic": 2 * 3 * 0.0057 * 9**0.5}


@pytest.mark.parametrize("options", [*OPTIONS.values(), *FILLED_UP.values()], ids=[*OPTIONS, *FILLED_UP])
def test_float32_is_the_reference(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_decoder(**{**WIDE, "heads": 6, **options})
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe="fp32", context_length=CONTEXT)
    onnx.checker.check_model(str(path))
    # 2 layers of some 20 operations, each off by 2^-24 of values near 1, and sums of up to 128 such, as a random walk:
    # 40 * sqrt(128) * 6e-8.
    assert relative_error(path, signature, spec) < 2.7e-5


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("recipe", ["fp16", INT8, INT4, WEIGHTS8])
def test_a_recipe_rounds_weights_and_activations_and_nothing_else(
    recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    spec = random_decoder(**{**WIDE, **options})
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe=recipe, context_length=CONTEXT)
    onnx.checker.check_model(str(path))
    assert relative_error(path, signature, spec, stored(spec, recipe)) < BOUND[RECIPES[recipe].activations]


@pytest.mark.parametrize("widths", ["one width", "mixed"])
@pytest.mark.parametrize("options", ["tied", "own head", "query and key norms", "positions"])
@pytest.mark.parametrize("recipe", NAMES)
def test_every_piece_is_stored_as_wide_as_it_must_be(recipe: str, options: str, widths: str, tmp_path: Path) -> None:
    chosen: dict[str, dict[str, Any]] = {
        "tied": {"token_scale": 4.0},
        "own head": {"tied": False, "biases": True},
        "query and key norms": {"query_key_norm": True},
        "positions": {"positions": 64, "rotary": None},
    }
    # Inputs of 128 and 256 fill every block.
    spec = random_decoder(width=128, heads=8, kv_heads=4, feed_forward=256, vocabulary=200, **chosen[options])
    spec = mixed(spec) if widths == "mixed" else spec
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe=recipe, context_length=CONTEXT)
    assert relative_error(path, signature, spec, stored(spec, recipe)) < BOUND[RECIPES[recipe].activations]
    assert matrices(path) == expected_matrices(spec, recipe)


def matrices(path: Path) -> Counter[str]:
    """Return how many weights of a file have each form; vectors and scales are left out."""
    found: Counter[str] = Counter()
    four_bits = {
        node.input[1]
        for node in onnx.load(str(path)).graph.node
        if node.op_type == "MatMulNBits" and {a.name: a.i for a in node.attribute}["bits"] == 4
    }
    called = {"FLOAT": "float32", "FLOAT16": "float16", "UINT8": "int8", "INT8": "int8"}
    for tensor in onnx.load(str(path)).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        size = int(np.prod(tensor.dims))
        if size >= 4096 and kind in called:
            four = tensor.name in four_bits
            found["int4" if four else called[kind]] += 2 * size if four else size
    return found


def expected_matrices(spec: TransformerSpec, recipe: str) -> Counter[str]:
    found: Counter[str] = Counter()
    head = spec.head.tokens
    assert head is not None
    tables = {id(table): table for table in (spec.embeddings.token, head.table)}
    if spec.embeddings.position is not None:
        tables[0] = spec.embeddings.position
    for table in tables.values():
        found[form_of(recipe, max(8, spec.embeddings.least_bits), table.shape)] += table.size
    for layer in spec.decoder.layers:
        attention, block = layer.attention, layer.feed_forward
        for linear in (
            attention.query,
            attention.key,
            attention.value,
            attention.output,
            block.up,
            block.down,
            block.gate,
        ):
            assert linear is not None
            found[form_of(recipe, linear.least_bits, linear.kernel.shape)] += linear.kernel.size
    return found


def test_a_kernel_that_was_rounded_in_other_blocks_is_refused(tmp_path: Path) -> None:
    spec = random_decoder(width=128, heads=8, feed_forward=256)
    first, *others = spec.decoder.layers
    up = first.feed_forward.up
    up = replace(up, grid=Grid(np.ones((up.kernel.shape[1], 4), np.float32)))
    first = replace(first, feed_forward=replace(first.feed_forward, up=up))
    spec = replace(spec, decoder=replace(spec.decoder, layers=(first, *others)))
    with pytest.raises(ConversionError, match="was rounded in blocks of 32, and the recipe has blocks of 64"):
        emit_onnx_decoder(spec, tmp_path / "model.onnx", recipe="dynamic_wi4b64_afp32", context_length=CONTEXT)


@pytest.mark.parametrize("options", FILLED_UP.values(), ids=FILLED_UP.keys())
@pytest.mark.parametrize("recipe", [INT8, WEIGHTS8, INT4])
def test_heads_that_are_filled_up_are_quantised_too(recipe: str, options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_decoder(**{**WIDE, **options})
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe=recipe, context_length=CONTEXT)
    # Against the float weights: an int8 block's step is as large as an activation's, sqrt(2) times the error above; an int4
    # block's error is 8 % of sigma, and 9 products in a row add up to 24 %, at 3 sigma.
    assert relative_error(path, signature, spec) < (3 * 0.08 * 9**0.5 if recipe == INT4 else 0.103 * 2**0.5)


@pytest.mark.parametrize("recipe", NAMES)
def test_nothing_hangs_on_the_optimiser(recipe: str, tmp_path: Path) -> None:
    spec = random_decoder(**WIDE, biases=True)
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe=recipe, context_length=CONTEXT)
    ids = np.random.default_rng(0).integers(1, spec.vocabulary_size, (1, 9))
    plain = session(path, graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    made, wanted = (scores(opened, signature, ids, (8, 8), (1, 1)) for opened in (plain, session(path)))
    for (one, _), (other, _) in zip(made, wanted, strict=True):
        # The same products; an activation on the edge of a step may fall to either side.
        np.testing.assert_allclose(one, other, atol=0.03 if recipe in DYNAMIC else 1e-4)


def test_sequences_of_one_length_run_together(tmp_path: Path) -> None:
    spec = random_decoder(**WIDE, positions=64)
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe="fp32", context_length=CONTEXT)
    ids = np.random.default_rng(0).integers(1, spec.vocabulary_size, (3, 9))
    expected = forward(spec, {spec.token_input: ids})
    for answer, rows in scores(session(path), signature, ids, (7, 7), (1, 1), (1, None)):
        np.testing.assert_allclose(answer, expected[:, rows], atol=1e-4)


def test_norms_are_not_merged_into_the_slower_operators(tmp_path: Path) -> None:
    path, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    for norm, name in (("rms", "SimplifiedLayerNormalization"), ("layer", "LayerNormalization")):
        emit_onnx_decoder(random_decoder(**WIDE, norm=norm), path, recipe=INT4, context_length=CONTEXT)
        session(path, optimized_model_filepath=str(optimised))
        operators = operator_histogram(optimised)
        assert operators[name] == 5
        assert not [found for found in operators if "Skip" in found]
        assert operators["com.microsoft.GroupQueryAttention"] == 2
        # Queries, keys and values are one product: output, up, gate, down make five a layer; and the head.
        assert operators["com.microsoft.MatMulNBits"] == 2 * 5 + 1


def test_the_signature_names_what_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    spec = random_decoder(**WIDE, windows=(None, 5))
    (signature,) = emit_onnx_decoder(spec, path, recipe="fp32", context_length=CONTEXT)
    assert signature == Signature(
        "main",
        None,
        (
            Port("input_ids", "int64", (None, None), "token_ids"),
            Port("attention_mask", "int64", (None, None), "padding_mask"),
        ),
        (Port("logits", "float32", (None, None, 200), "logits"),),
        kind="decode",
        cache=CacheRecord(
            2,
            ("past_key_values.{i}.key", "past_key_values.{i}.value"),
            ("present.{i}.key", "present.{i}.value"),
            (None, 2, None, 16),
            "float32",
            None,
        ),
    )
    opened = session(path)
    assert [put.name for put in opened.get_inputs()] == ["input_ids", "attention_mask", *empty_cache(signature)]
    assert [put.name for put in opened.get_overridable_initializers()] == ["logits_count"]
    assert opened.get_outputs()[0].shape == ["batch", 1, 200]
    assert [put.name for put in opened.get_outputs()][1:] == [
        f"present.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")
    ]
    metadata = opened.get_modelmeta().custom_metadata_map
    assert metadata == {"edgelm.context_length": "40", "edgelm.onnxruntime": "1.24"}


@pytest.mark.parametrize("recipe", NAMES)
def test_a_tied_head_shares_its_bytes(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for tied, tables in ((True, 1), (False, 2)):
        emit_onnx_decoder(random_decoder(**WIDE, tied=tied), path, recipe=recipe, context_length=CONTEXT)
        initializers = onnx.load(str(path)).graph.initializer
        assert (
            sum(list(tensor.dims[:1]) == [200] and len(tensor.raw_data) >= 200 * 96 for tensor in initializers)
            == tables
        )


# int8: one byte and a float32 scale for 64 or 128 values; int4: half a byte and a scale for 32, of the table as int8.
@pytest.mark.parametrize(("recipe", "share"), [("fp16", 0.5), (INT8, 0.25 + 1 / 64), (INT4, 0.125 + 1 / 32 + 0.03)])
def test_size(recipe: str, share: float, tmp_path: Path) -> None:
    spec = random_decoder(width=128, head_dim=32, feed_forward=512, vocabulary=1000, layers=4)
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    emit_onnx_decoder(spec, plain, recipe="fp32", context_length=CONTEXT)
    emit_onnx_decoder(spec, small, recipe=recipe, context_length=CONTEXT)
    assert small.stat().st_size < share * 1.05 * plain.stat().st_size + 20_000  # nodes and names


@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_writing_holds_little_more_than_the_model(recipe: str, tmp_path: Path) -> None:
    spec = random_decoder(width=256, head_dim=64, feed_forward=512, vocabulary=2000, layers=4)
    tracemalloc.start()
    try:
        emit_onnx_decoder(spec, tmp_path / "model.onnx", recipe=recipe, context_length=CONTEXT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One tensor that is made at a time (the largest: 2000 rows of 256, as float16 1 MB; queries, keys and values 0.5 MB and
    # their parts again), and a few hundred protobuf messages; the weights are 12 MB.
    assert peak < 3_000_000


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_decoder, "_EXTERNAL_ABOVE", 10_000)
    spec = random_decoder(**WIDE)
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx_decoder(spec, path, recipe="fp32", context_length=CONTEXT)
    assert path.stat().st_size < 40_000 < (tmp_path / "model.onnx.data").stat().st_size
    onnx.checker.check_model(str(path))
    assert relative_error(path, signature, spec) < 2.7e-5
    # A tensor that is made while the file is written stands there whole, on a page of its own.
    outside = [
        tensor for tensor in onnx.load(str(path), load_external_data=False).graph.initializer if tensor.external_data
    ]
    offsets = [int(entry.value) for tensor in outside for entry in tensor.external_data if entry.key == "offset"]
    assert any("query+key+value" in tensor.name for tensor in outside)
    assert len(offsets) == len(outside)
    assert all(offset % 4096 == 0 for offset in offsets)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    spec = random_decoder(**WIDE)

    def emit(changed: TransformerSpec, recipe: str = "fp32", context_length: int = CONTEXT) -> None:
        emit_onnx_decoder(changed, path, recipe=recipe, context_length=context_length)

    def with_second(**changes: Any) -> TransformerSpec:
        first, second = spec.decoder.layers
        attention = replace(second.attention, **changes)
        return replace(spec, decoder=Stack((first, replace(second, attention=attention))))

    for recipe in ("fp8", "static_wi8_ai8"):  # the second wants ranges, which nothing here has
        with pytest.raises(RecipeError, match=f"No recipe is called '{recipe}'"):
            emit(spec, recipe=recipe)
    with pytest.raises(ModelError, match="is no language model"):
        emit(random_spec())
    with pytest.raises(ConversionError, match=r"A context of 65 tokens was asked for, and 'random' takes 1 to 64"):
        emit(spec, context_length=65)
    with pytest.raises(ModelError, match=r"caches of different shapes \(1 heads of 16, 2 heads of 16\)"):
        emit(with_second(kv_heads=1))
    with pytest.raises(ModelError, match="sees what comes after a token"):
        emit(with_second(causal=False))
    spec.decoder.layers[1].feed_forward.up.kernel[3, 4] = 1e6
    with pytest.raises(RecipeError, match=r"layer_1/up/kernel reaches 1e\+06, and float16 ends at 65504"):
        emit(spec, recipe="fp16")
    spec.decoder.layers[1].feed_forward.up.kernel[3, 4] = np.nan
    with pytest.raises(ModelError, match="holds 1 NaN or infinite values"):
        emit(spec)
    assert not path.exists()
