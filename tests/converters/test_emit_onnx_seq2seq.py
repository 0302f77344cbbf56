from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.onnx_file import operator_histogram
from edgelm_converters.emit.onnx_seq2seq import DATA_FILE, DECODER_FILE, ENCODER_FILE, emit_onnx_seq2seq
from edgelm_converters.emit.quantize import quantize_weight
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Embeddings, Layer, Linear, Stack, TransformerSpec
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_seq2seq
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_pair, random_seq2seq, random_spec
from stored import as_stored, form_of

from edgelm.bundle import CacheRecord, Port, Signature
from edgelm.errors import ConversionError, ModelError, RecipeError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TARGET = 20
INT8, INT4, WEIGHTS8 = "dynamic_wi8_afp32", "dynamic_wi4b32_afp32", "weight_only_wi8_afp32"

# Wide enough for matrices of 4096 elements, which is where fp16 and int8 begin.
WIDE: dict[str, Any] = {"width": 96, "heads": 6, "feed_forward": 128, "vocabulary": 200}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bart": {"embedding_norm": True, "tied": True, "activation": "gelu", "source_mask": "input"},
    "t5": {
        "positions": False, "relative": True, "norm": "rms", "norm_placement": "pre", "final_norm": True, "biases": False,
        "gated": True, "activation": "gelu_tanh", "tied": True, "head_bias": False,
    },
    "whisper": {
        "bands": 8, "norm_placement": "pre", "final_norm": True, "activation": "gelu", "tied": True, "head_bias": False,
    },
    "own source embeddings": {"source_vocabulary": 150, "token_scale": 9.8},
    "another number of layers": {"encoder_layers": 1, "layers": 3},
    "one layer": {"encoder_layers": 1, "layers": 1},
    "wide heads": {"head_dim": 24},
}  # fmt: skip
FAMILIES = ("plain", "bart", "t5", "whisper")

# Of the error, as a share of the largest score. Float sums: 4 layers of some 25 operations, each off by 2^-24 of values near 1,
# and sums of up to 128 such, as a random walk: 100 * sqrt(128) * 6e-8.
# Activations of 8 bits: the encoder's 255 steps reach over the extremes of some thousand values, 8 sigma, an error of
# 8 / 255 / sqrt(12) = 0.9 % of sigma in each product, and the decoder's less; some 20 products in a row add up to 4 %, the
# extreme of 200 scores is at 3 sigma.
BOUND = {"float32": 6.8e-5, "dynamic": 3 * 0.009 * 20**0.5}


@contextmanager
def emitted(spec: TransformerSpec, folder: Path, recipe: str = "fp32") -> Iterator[Seq2SeqProgram]:
    signatures = emit_onnx_seq2seq(spec, folder, recipe=recipe, target_length=TARGET)
    program = open_seq2seq("onnx", folder / DECODER_FILE, signatures, ProgramOptions(threads=1))
    yield program
    program.close()


def read(program: Seq2SeqProgram, spec: TransformerSpec, pair: dict[str, NDArray[Any]], real: int) -> None:
    assert spec.source is not None
    program.encode(pair[spec.source.input], np.array([real], np.int32), 1)


def relative_error(program: Seq2SeqProgram, spec: TransformerSpec, reference: TransformerSpec | None = None) -> float:
    """Return the largest error at any position but the first ones, as a share of the largest expected score."""
    assert spec.source is not None
    real = 14 if spec.source.audio is not None else 9
    pair = random_pair(spec, 14, TARGET, real=real)
    read(program, spec, pair, real)
    ids = pair[spec.token_input]
    expected = forward(reference or spec, pair)[0]
    # The prefix in one call, some tokens one at a time, several at once, and the rest one at a time.
    ends = (3, 4, 5, 6, 10, *range(11, TARGET + 1))
    found = {
        end: program.forward(ids[:, start:end], start)[0].copy() for start, end in zip((0, *ends), ends, strict=False)
    }
    return max(float(np.abs(scores - expected[end - 1]).max()) for end, scores in found.items()) / float(
        np.abs(expected).max()
    )


def stored(spec: TransformerSpec, recipe: str) -> TransformerSpec:
    """Return the spec with each weight as the files hold it: `as_stored`, and the decoder's int8 in blocks."""
    columns = as_stored(spec, recipe, "onnx")
    if RECIPES[recipe].activations != "dynamic":
        return columns

    def in_blocks(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
        block = next(size for size in (128, 64, 32, 16) if len(kernel) % size == 0)
        steps, scale = quantize_weight(np.ascontiguousarray(kernel.T).reshape(-1, block), axis=0)
        return (steps * scale[:, None]).reshape(kernel.T.shape).T

    def linear(exact: Linear, held: Linear, *beside: Linear) -> Linear:
        shape = len(exact.kernel), sum(part.kernel.shape[1] for part in (exact, *beside))
        return (
            replace(held, kernel=in_blocks(exact.kernel))
            if form_of(recipe, exact.least_bits, shape) == "int8"
            else held
        )

    def table(exact: NDArray[np.float32], least_bits: int) -> NDArray[np.float32]:
        form = form_of(recipe, max(8, least_bits), exact.shape)
        if form == "int8":
            return in_blocks(exact.T).T
        return exact.astype(np.float16).astype(np.float32) if form == "float16" else exact

    def embeddings(exact: Embeddings, held: Embeddings) -> Embeddings:
        position = None if exact.position is None else table(exact.position, exact.least_bits)
        return replace(held, token=table(exact.token, exact.least_bits), position=position)

    def layer(exact: Layer, held: Layer) -> Layer:
        attention, block, cross = exact.attention, exact.feed_forward, exact.cross_attention
        assert cross is not None
        assert held.cross_attention is not None
        query, key, value = attention.query, attention.key, attention.value
        gate = None
        if block.gate is not None and held.feed_forward.gate is not None:
            gate = linear(block.gate, held.feed_forward.gate)
        return replace(
            held,
            attention=replace(
                held.attention,
                query=linear(query, held.attention.query, key, value),
                key=linear(key, held.attention.key, query, value),
                value=linear(value, held.attention.value, query, key),
                output=linear(attention.output, held.attention.output),
            ),
            # Keys and values of the source are the encoder's products.
            cross_attention=replace(
                held.cross_attention,
                query=linear(cross.query, held.cross_attention.query),
                output=linear(cross.output, held.cross_attention.output),
            ),
            feed_forward=replace(
                held.feed_forward,
                up=linear(block.up, held.feed_forward.up),
                down=linear(block.down, held.feed_forward.down),
                gate=gate,
            ),
        )

    head, source, held_source = spec.head.tokens, spec.source, columns.source
    assert head is not None
    assert source is not None
    assert held_source is not None
    if source.embeddings is not None and held_source.embeddings is not None:
        held_source = replace(held_source, embeddings=embeddings(source.embeddings, held_source.embeddings))
    if source.audio is not None and held_source.audio is not None:
        held_source = replace(held_source, audio=replace(held_source.audio, position=table(source.audio.position, 8)))
    layers = zip(spec.decoder.layers, columns.decoder.layers, strict=True)
    return replace(
        columns,
        embeddings=embeddings(spec.embeddings, columns.embeddings),
        source=held_source,
        decoder=replace(columns.decoder, layers=tuple(layer(exact, held) for exact, held in layers)),
        head=replace(columns.head, tokens=replace(head, table=table(head.table, head.least_bits))),
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_float32_is_the_reference(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_seq2seq(**{**WIDE, **options})
    with emitted(spec, tmp_path) as program:
        for name in (ENCODER_FILE, DECODER_FILE):
            onnx.checker.check_model(str(tmp_path / name))
        assert relative_error(program, spec) < BOUND["float32"]


@pytest.mark.parametrize("options", [OPTIONS[name] for name in FAMILIES], ids=FAMILIES)
@pytest.mark.parametrize("recipe", ["fp16", INT8, INT4, WEIGHTS8])
def test_a_recipe_rounds_weights_and_activations_and_nothing_else(
    recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    spec = random_seq2seq(**{**WIDE, **options})
    with emitted(spec, tmp_path, recipe) as program:
        for name in (ENCODER_FILE, DECODER_FILE):
            onnx.checker.check_model(str(tmp_path / name))
        assert relative_error(program, spec, stored(spec, recipe)) < BOUND[RECIPES[recipe].activations]


def shared_by(spec: TransformerSpec, times: int) -> TransformerSpec:
    """Return the model with each key and value of its cross-attention shared by several heads."""

    def layer(held: Layer) -> Layer:
        cross = held.cross_attention
        assert cross is not None
        width = cross.kv_heads // times * cross.head_dim

        def narrow(linear: Linear) -> Linear:
            assert linear.bias is not None
            return replace(linear, kernel=np.ascontiguousarray(linear.kernel[:, :width]), bias=linear.bias[:width])

        cross = replace(cross, kv_heads=cross.kv_heads // times, key=narrow(cross.key), value=narrow(cross.value))
        return replace(held, cross_attention=cross)

    return replace(spec, decoder=replace(spec.decoder, layers=tuple(layer(held) for held in spec.decoder.layers)))


def test_heads_that_share_the_keys_of_the_source(tmp_path: Path) -> None:
    spec = shared_by(random_seq2seq(**WIDE), 3)
    with emitted(spec, tmp_path) as program:
        assert relative_error(program, spec) < BOUND["float32"]


@pytest.mark.parametrize("recipe", [INT8, INT4])
def test_every_piece_is_stored_as_wide_as_it_must_be(recipe: str, tmp_path: Path) -> None:
    spec = random_seq2seq(**WIDE, tied=True)
    first, *others = spec.decoder.layers
    cross, head, source = first.cross_attention, spec.head.tokens, spec.source
    assert cross is not None
    assert head is not None
    assert source is not None
    assert source.embeddings is not None
    cross = replace(
        cross,
        key=replace(cross.key, name="cross/key", least_bits=16),
        query=replace(cross.query, name="cross/query", least_bits=8),
    )
    block = replace(
        first.feed_forward,
        up=replace(first.feed_forward.up, name="up", least_bits=16),
        down=replace(first.feed_forward.down, name="down"),
    )
    spec = replace(
        spec,
        embeddings=replace(spec.embeddings, least_bits=16),
        source=replace(source, embeddings=replace(source.embeddings, least_bits=16)),
        head=replace(spec.head, tokens=replace(head, least_bits=16)),
        decoder=replace(spec.decoder, layers=(replace(first, cross_attention=cross, feed_forward=block), *others)),
    )
    with emitted(spec, tmp_path, recipe) as program:
        assert relative_error(program, spec, stored(spec, recipe)) < BOUND["dynamic"]
    kinds = {}
    for name in (ENCODER_FILE, DECODER_FILE):
        for tensor in onnx.load(str(tmp_path / name), load_external_data=False).graph.initializer:
            kinds[tensor.name] = onnx.TensorProto.DataType.Name(tensor.data_type)
    halves = {name for name, kind in kinds.items() if kind == "FLOAT16"}
    assert halves == {f"{cross.key.name}/kernel", f"{block.up.name}/kernel", "embeddings/token"}
    # Of 4 bits, two values share a byte.
    wide, narrow = (
        next(name for name in kinds if name == f"{linear.name}/kernel") for linear in (cross.query, block.down)
    )
    sizes = {
        tensor.name: list(tensor.dims)
        for tensor in onnx.load(str(tmp_path / DECODER_FILE), load_external_data=False).graph.initializer
    }
    assert int(np.prod(sizes[wide])) == 96 * 96
    assert int(np.prod(sizes[narrow])) == 128 * 96 // (2 if recipe == INT4 else 1)


@pytest.mark.parametrize("recipe", ["fp32", "fp16", INT8, INT4, WEIGHTS8])
def test_what_both_files_use_is_stored_once(recipe: str, tmp_path: Path) -> None:
    spec = random_seq2seq(**{**WIDE, "vocabulary": 2000}, tied=True, encoder_layers=1, layers=1, head_bias=False)
    emit_onnx_seq2seq(spec, tmp_path, recipe=recipe, target_length=TARGET)
    tables, places = [], {}
    for name in (ENCODER_FILE, DECODER_FILE):
        for tensor in onnx.load(str(tmp_path / name), load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                assert entries["location"] == DATA_FILE
                assert int(entries["offset"]) % 4096 == 0
                places.setdefault((int(entries["offset"]), int(entries["length"])), set()).add(tensor.name)
            if tensor.name == "embeddings/token":
                tables.append(entries["offset"])
    # Embeddings of the source, of the answer, and the head: one table.
    assert len(tables) == 2
    assert len(set(tables)) == 1
    assert all(len(names) == 1 for names in places.values())
    spans = sorted(places)
    assert all(first + length <= second for (first, length), (second, _) in pairwise(spans))
    assert sum(spans[-1]) == (tmp_path / DATA_FILE).stat().st_size
    # One table, and 10 matrices of the decoder and 6 of the encoder in float32 bytes; each on a page of its own.
    values = 2000 * 96 + (4 + 2 + 2) * 96 * 96 + 4 * 96 * 96 + 4 * 96 * 128
    bits = {"fp32": 32, "fp16": 16, INT8: 8, INT4: 8, WEIGHTS8: 8}[recipe]
    assert (tmp_path / DATA_FILE).stat().st_size < values * bits / 8 * 1.07 + 4096 * len(spans) + 60_000


def test_no_row_of_the_source_is_repeated(tmp_path: Path) -> None:
    emit_onnx_seq2seq(random_seq2seq(**WIDE), tmp_path, recipe="fp32", target_length=TARGET)
    operators = operator_histogram(tmp_path / DECODER_FILE)
    assert operators["com.microsoft.MultiHeadAttention"] == operators["com.microsoft.GroupQueryAttention"] == 2
    # The one is that of the positions' lengths, int32 (R,).
    assert operators["Expand"] == 1
    assert "Tile" not in operators


def test_the_signatures_name_what_the_files_have(tmp_path: Path) -> None:
    spec = random_seq2seq(**{**WIDE, "head_dim": 10})
    signatures = emit_onnx_seq2seq(spec, tmp_path, recipe="fp32", target_length=TARGET)
    source = CacheRecord(
        2,
        ("cross.{i}.key", "cross.{i}.value"),
        ("cross.{i}.key", "cross.{i}.value"),
        (None, 6, None, 10),
        "float32",
        None,
    )
    cache = CacheRecord(
        2, ("past_key_values.{i}.key", "past_key_values.{i}.value"), ("present.{i}.key", "present.{i}.value"),
        (None, 6, None, 16), "float32", None,
    )  # fmt: skip
    seen = Port("source_seen", "int32", (None, None), "source_mask")
    assert signatures == (
        Signature(
            "encode", None,
            (
                Port("source_ids", "int32", (None, None), "source_ids"),
                Port("source_mask", "int32", (None, None), "source_mask"),
            ),
            (seen,), "encode", source=source, rows=None, file="encoder.onnx",
        ),
        Signature(
            "decode", None,
            (
                Port("input_ids", "int32", (None, None), "token_ids"), Port("positions", "int32", (None,), "positions"), seen,
            ),
            (Port("logits", "float32", (None, 1, 200), "logits"),), "decode", cache, source, rows=None, file="decoder.onnx",
        ),
    )  # fmt: skip
    heard = emit_onnx_seq2seq(random_seq2seq(**WIDE, bands=8), tmp_path, recipe="fp32", target_length=TARGET)
    assert heard[0].inputs == (Port("frames", "float32", (None, None, 8), "frames"),)
    assert heard[0].outputs == ()
    assert [port.role for port in heard[1].inputs] == ["token_ids", "positions"]


def test_refusals(tmp_path: Path) -> None:
    spec = random_seq2seq(**WIDE)

    def emit(changed: TransformerSpec, recipe: str = "fp32", target_length: int = TARGET) -> None:
        emit_onnx_seq2seq(changed, tmp_path, recipe=recipe, target_length=target_length)

    def with_second(**changes: Any) -> TransformerSpec:
        first, second = spec.decoder.layers
        return replace(spec, decoder=Stack((first, replace(second, **changes))))

    for recipe in ("fp8", "static_wi8_ai8"):
        with pytest.raises(RecipeError, match=f"No recipe is called '{recipe}'"):
            emit(spec, recipe)
    for other in (random_decoder(), random_spec()):
        with pytest.raises(ModelError, match="is no encoder-decoder"):
            emit(other)
    with pytest.raises(ModelError, match="does not read the source: it has no cross-attention"):
        emit(with_second(cross_attention=None))
    first, second = spec.decoder.layers
    with pytest.raises(ModelError, match="share their cross-attention"):
        emit(with_second(cross_attention=first.cross_attention))
    assert second.cross_attention is not None
    with pytest.raises(ModelError, match="turns, normalises or caps"):
        emit(with_second(cross_attention=replace(second.cross_attention, soft_cap=3.0)))
    with pytest.raises(ModelError, match=r"different shapes in their cross-attention \(6 heads of 16, 6 heads of 32\)"):
        emit(with_second(cross_attention=replace(second.cross_attention, head_dim=32)))
    with pytest.raises(ModelError, match="in their self-attention"):
        emit(with_second(attention=replace(second.attention, head_dim=32)))
    with pytest.raises(ModelError, match="sees what comes after a token"):
        emit(with_second(attention=replace(second.attention, causal=False)))
    for length in (0, 25):
        with pytest.raises(
            ConversionError, match=f"Answers of {length} tokens were asked for, and 'translator' makes 1 to 24"
        ):
            emit(spec, target_length=length)
    spec.embeddings.token[3, 2] = np.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        emit(spec)
