from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.tflite_seq2seq import emit_tflite_seq2seq
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Layer, Linear, Norm, Rotary, Stack, TransformerSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_pair, random_seq2seq, random_spec
from stored import as_stored

from edgelm.bundle.manifest import Signature
from edgelm.errors import ConversionError, ModelError, RecipeError

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

NAMES = [recipe.name for recipe in RECIPES.values() if not recipe.static]

# Up to 26 products follow each other: 4 in each of 2 layers of the encoder (2 more of audio), 8 in each of 2 of the decoder.
# float32: a sum of up to 256 terms is off by about sqrt(256) * 2^-24 = 1e-6 of its size; sqrt(26) * 1e-6 = 5e-6, and twice that
# where scores cancel.
# Activations of 8 bits lie in about 8 deviations, cut into 255 steps: 8 / 255 / sqrt(12) = 0.9 % of a deviation, the same share
# in each product's output; 26 in a row give 4.6 %. The worst of 1,200 scores is off by 3.3 times that, 15 % of a deviation;
# the largest score is at 3 deviations: 5 %, and twice that where a residual cancels.
TOLERANCE = {"float32": 1e-5, "dynamic": 0.1}

OPTIONS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "bart": {
        "embedding_norm": True, "activation": "gelu", "source_mask": "input", "tied": True, "token_scale": 5.6,
    },
    "t5": {
        "norm": "rms", "norm_placement": "pre", "final_norm": True, "relative": True, "positions": False, "gated": True,
        "activation": "gelu_tanh", "biases": False, "head_bias": False, "head_dim": 12,
    },
    "whisper": {
        "bands": 10, "norm_placement": "pre", "final_norm": True, "activation": "gelu", "tied": True, "head_bias": False,
    },
    "two vocabularies, no mask": {"source_vocabulary": 70, "source_mask": "none", "norm_placement": "pre"},
    "uneven": {"layers": 1, "encoder_layers": 3, "heads": 2, "head_dim": 5, "relative": True},
}  # fmt: skip


class _Model:
    """A file in the plain interpreter, whose caches are carried from call to call."""

    def __init__(self, path: Path, signatures: Sequence[Signature]) -> None:
        self.opened = interpreter.Interpreter(str(path), num_threads=1)
        self.signatures = {signature.name: signature for signature in signatures}

    def read(
        self, spec: TransformerSpec, pair: dict[str, NDArray[Any]], count: int, real: int
    ) -> dict[str, NDArray[Any]]:
        """Return what the encoder gives of a pair's source, of which `real` tokens count, filled up to `count`."""
        inputs = {}
        for port in self.signatures[f"encode_{count}"].inputs:
            inputs[port.name] = np.zeros(port.shape, port.dtype)  # type: ignore[arg-type]
            inputs[port.name][:, :real] = 1 if port.role == "source_mask" else pair[port.name][:, :real]
        found: dict[str, NDArray[Any]] = self.opened.get_signature_runner(f"encode_{count}")(**inputs)
        return found

    def answer(self, name: str, source: dict[str, NDArray[Any]], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the scores after each of the tokens ``(b, n)``: ``(b, n, V)``."""
        cache = self.signatures[name].cache
        assert cache is not None
        names = [pattern.format(i=layer) for pattern in cache.inputs for layer in range(cache.layers)]
        caches = {name: np.zeros(cache.shape, np.float32) for name in names}  # type: ignore[arg-type]
        scores = []
        for place, column in enumerate(ids.T):
            runner = self.opened.get_signature_runner(name)
            outputs = runner(tokens=column[:, None], input_pos=np.array([place], np.int32), **source, **caches)
            scores.append(outputs.pop("logits"))
            assert set(outputs) == set(caches)
            caches = outputs
        return np.concatenate(scores, axis=1)


def _error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _expected(
    spec: TransformerSpec, pair: dict[str, NDArray[Any]], real: int, ids: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the scores of each row for the source cut to what counts of it."""
    assert spec.source is not None
    given = {name: value[:, :real] for name, value in pair.items() if name != spec.token_input}
    return np.stack([forward(spec, {**given, spec.token_input: row[None]})[0] for row in ids])


def _ids(spec: TransformerSpec, rows: int, count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, spec.vocabulary_size, (rows, count)).astype(np.int32)


@pytest.mark.parametrize("name", OPTIONS)
def test_computes_what_the_definitions_say(name: str, tmp_path: Path) -> None:
    spec = random_seq2seq(**OPTIONS[name])
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_seq2seq(spec, path, recipe="fp32", source_lengths=(20, 8), target_length=12, beams=(3, 1))
    heard = spec.source is not None and spec.source.audio is not None
    pair = random_pair(spec, 20, 1)
    model = _Model(path, signatures)
    for count, real in ((8, 8), (20, 20)) if heard else ((8, 5), (20, 8), (20, 20)):
        source = model.read(spec, pair, count, real)
        for rows, call in ((1, f"decode_{count}"), (3, f"decode_{count}_x3")):
            ids = _ids(spec, rows, 12)
            error = _error(model.answer(call, source, ids), _expected(spec, pair, real, ids))
            assert error < TOLERANCE["float32"], (call, real)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 7),
    width=st.integers(8, 40),  # the norm of one or two numbers that nearly cancel magnifies any rounding
    count=st.integers(1, 25),
    length=st.integers(1, 9),
    rows=st.integers(1, 5),
    bands=st.none() | st.integers(1, 9),
    relative=st.booleans(),
    placement=st.sampled_from(["pre", "post"]),
    seed=st.integers(0, 2**16),
)
def test_every_size_works(
    heads: int, head_dim: int, width: int, count: int, length: int, rows: int, bands: int | None, relative: bool,
    placement: str, seed: int, tmp_path: Path,
) -> None:  # fmt: skip
    spec = random_seq2seq(
        heads=heads, head_dim=head_dim, width=width, bands=bands, relative=relative, norm_placement=placement, seed=seed,
        layers=1, encoder_layers=1, vocabulary=20,
    )  # fmt: skip
    path = tmp_path / "model.tflite"
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    signatures = emit_tflite_seq2seq(
        spec, path, recipe="fp32", source_lengths=(count,), target_length=length, beams=(rows,)
    )
    pair, ids, model = random_pair(spec, count, 1, seed=seed), _ids(spec, rows, length, seed), _Model(path, signatures)
    found = model.answer(signatures[1].name, model.read(spec, pair, count, count), ids)
    # Eight numbers may still have a length of a 30th of the usual one, whose norm magnifies the rounding 30 times.
    assert _error(found, _expected(spec, pair, count, ids)) < 30 * TOLERANCE["float32"]


def test_shared_key_heads(tmp_path: Path) -> None:
    spec = random_seq2seq(heads=4, head_dim=8)

    def narrow(layer: Layer) -> Layer:
        def cut(linear: Linear) -> Linear:
            assert linear.bias is not None
            return replace(linear, kernel=linear.kernel[:, :16].copy(), bias=linear.bias[:16].copy())

        assert layer.cross_attention is not None
        own, cross = (
            replace(attention, kv_heads=2, key=cut(attention.key), value=cut(attention.value))
            for attention in (layer.attention, layer.cross_attention)
        )
        return replace(layer, attention=own, cross_attention=cross)

    spec = replace(spec, decoder=Stack(tuple(narrow(layer) for layer in spec.decoder.layers), spec.decoder.final_norm))
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_seq2seq(spec, path, recipe="fp32", source_lengths=(9,), target_length=6, beams=(3,))
    pair, ids, model = random_pair(spec, 9, 1), _ids(spec, 3, 6), _Model(path, signatures)
    found = model.answer("decode_9_x3", model.read(spec, pair, 9, 7), ids)
    assert _error(found, _expected(spec, pair, 7, ids)) < TOLERANCE["float32"]


def test_far_relative_positions(tmp_path: Path) -> None:
    # Of the 8 buckets the last begins before 16: most of these distances share it, on both sides of the encoder.
    spec = random_seq2seq(
        relative=True, positions=False, layers=1, encoder_layers=1, source_length=70, target_length=40
    )
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_seq2seq(spec, path, recipe="fp32", source_lengths=(70,), target_length=40, beams=(2,))
    pair, ids, model = random_pair(spec, 70, 1), _ids(spec, 2, 40), _Model(path, signatures)
    found = model.answer("decode_70_x2", model.read(spec, pair, 70, 66), ids)
    assert _error(found, _expected(spec, pair, 66, ids)) < TOLERANCE["float32"]


def _wide(**options: Any) -> TransformerSpec:
    """Return a spec whose kernels and tables have 4096 values or more, and into which nothing is folded but powers of 2."""
    given: dict[str, Any] = {
        "width": 128,
        "heads": 8,
        "feed_forward": 256,
        "vocabulary": 200,
        "activation": "gelu_tanh",
    }
    spec = random_seq2seq(**(given | options))

    def plain(norm: Norm | None) -> Norm | None:
        return None if norm is None else replace(norm, gamma=np.ones_like(norm.gamma))

    def unfolded(layer: Layer) -> Layer:
        names = ("attention_norm", "feed_forward_norm", "cross_attention_norm")
        return replace(layer, **{name: plain(getattr(layer, name)) for name in names})

    if spec.encoder.layers[0].norm_placement == "post":
        return spec
    stacks = {
        name: replace(stack, layers=tuple(unfolded(layer) for layer in stack.layers))
        for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder))
    }
    return replace(spec, **stacks)  # type: ignore[arg-type]


def _mixed(spec: TransformerSpec) -> TransformerSpec:
    """Return a model some of whose pieces may not be stored as narrow as the others."""

    def mixed(layer: Layer) -> Layer:
        cross, block = layer.cross_attention, layer.feed_forward
        assert cross is not None
        cross = replace(cross, key=replace(cross.key, least_bits=16), output=replace(cross.output, least_bits=8))
        block = replace(block, down=replace(block.down, least_bits=16))
        return replace(layer, cross_attention=cross, feed_forward=block)

    layers = tuple(mixed(layer) for layer in spec.decoder.layers)
    return replace(
        spec, decoder=replace(spec.decoder, layers=layers), embeddings=replace(spec.embeddings, least_bits=16)
    )


WIDE: dict[str, dict[str, Any]] = {
    "transformer": {"source_vocabulary": 150, "source_length": 40, "target_length": 36},
    "t5": {
        "norm": "rms", "norm_placement": "pre", "final_norm": True, "relative": True, "positions": False, "biases": False,
        "tied": True, "gated": True,
    },
    "whisper": {"bands": 40, "tied": True, "source_length": 70, "target_length": 36},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "recipe", "mixed"),
    [(name, recipe, False) for name in WIDE for recipe in NAMES]
    + [("transformer", recipe, True) for recipe in ("dynamic_wi8_afp32", "dynamic_wi4b32_afp32")],
)
def test_a_file_computes_with_the_weights_that_its_recipe_says(
    name: str, recipe: str, mixed: bool, tmp_path: Path
) -> None:
    spec = _wide(**WIDE[name])
    spec = _mixed(spec) if mixed else spec
    path = tmp_path / "model.tflite"
    # All rows of the positions: what is left of a table when fewer are used may be small enough to stay float32.
    count, length = WIDE[name].get("source_length", 32), WIDE[name].get("target_length", 24)
    signatures = emit_tflite_seq2seq(
        spec, path, recipe=recipe, source_lengths=(count,), target_length=length, beams=(2,)
    )
    real = count if name == "whisper" else count - 5
    pair, ids, model = random_pair(spec, count, 1), _ids(spec, 2, 6), _Model(path, signatures)
    found = model.answer(f"decode_{count}_x2", model.read(spec, pair, count, real), ids)
    error = _error(found, _expected(as_stored(spec, recipe, "tflite"), pair, real, ids))
    assert error < TOLERANCE["dynamic" if RECIPES[recipe].activations == "dynamic" else "float32"]


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"])
def test_further_lengths_and_beams_share_the_weights(recipe: str, tmp_path: Path) -> None:
    spec = _wide(vocabulary=3000, source_length=64, target_length=64, tied=True)
    path = tmp_path / "model.tflite"
    emit_tflite_seq2seq(spec, path, recipe=recipe, source_lengths=(16,), target_length=16, beams=(1,))
    one = path.stat().st_size
    emit_tflite_seq2seq(spec, path, recipe=recipe, source_lengths=(16, 32, 64), target_length=16, beams=(1, 4))
    # Seven more graphs of up to 130 operators, and longer tables of 48 positions, 512 bytes each.
    assert path.stat().st_size - one < 100_000
    layers = [*spec.encoder.layers, *spec.decoder.layers]
    kernels = sum(part.kernel.size for layer in layers for part in _linears(layer))
    form = RECIPES[recipe].weights
    bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4.5}[form]
    least = (kernels * bits + 3000 * 128 * max(bits, 8)) / 8  # a tied head and a shared embedding cost nothing
    columns = sum(part.kernel.shape[1] for layer in layers for part in _linears(layer))
    # A scale of 4 bytes a column and a row, and 2 bytes more a row that is looked up; a vector of zero points of 8 bytes each.
    scales = {"int8": 4 * columns + 14 * 3000, "int4": 14 * 3000}.get(form, 0)
    # Two graphs, positions of 16 rows, biases and norms.
    assert least < one < least + scales + 90_000


def _linears(layer: Layer) -> list[Linear]:
    attentions = [one for one in (layer.attention, layer.cross_attention) if one is not None]
    block = layer.feed_forward
    return [
        *(part for one in attentions for part in (one.query, one.key, one.value, one.output)), block.up, block.down
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_signatures_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    spec = random_seq2seq(**OPTIONS[name])
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_seq2seq(
        spec, path, recipe="dynamic_wi8_afp32", source_lengths=(16, 8), target_length=10, beams=(4, 1)
    )
    assert [(signature.name, signature.kind, signature.rows) for signature in signatures] == [
        ("encode_8", "encode", 1), ("decode_8", "decode", 1), ("decode_8_x4", "decode", 4),
        ("encode_16", "encode", 1), ("decode_16", "decode", 1), ("decode_16_x4", "decode", 4),
        ("reorder_x4", "reorder", 4),
    ]  # fmt: skip
    opened = interpreter.Interpreter(str(path))
    assert list(opened.get_signature_list()) == [signature.name for signature in signatures]
    for signature in signatures:
        runner = opened.get_signature_runner(signature.name)
        cached = _tensors(signature.cache)
        read = _tensors(signature.source)
        encodes = signature.kind == "encode"
        for ports, more, details in (
            (signature.inputs, cached if encodes else cached | read, runner.get_input_details()),
            (signature.outputs, read if encodes else cached, runner.get_output_details()),
        ):
            assert {port.name: (port.shape, port.dtype) for port in ports} | more == {
                name: (tuple(detail["shape"]), np.dtype(detail["dtype"]).name) for name, detail in details.items()
            }
    source = signatures[3].source
    assert source is not None
    assert source.length == (8 if name == "whisper" else 16)
    assert bool(signatures[3].outputs) == (name != "whisper")  # of audio nothing is hidden


def _tensors(record: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    if record is None:
        return {}
    names = [pattern.format(i=layer) for pattern in record.inputs for layer in range(record.layers)]
    return dict.fromkeys(names, (record.shape, record.dtype))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_turns_around_nothing_of_the_source_and_little_is_outside_of_xnnpack(name: str, tmp_path: Path) -> None:
    spec = random_seq2seq(**OPTIONS[name])
    path = tmp_path / "model.tflite"
    emit_tflite_seq2seq(spec, path, recipe="fp32", source_lengths=(16,), target_length=10, beams=(1, 4))
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    kinds = {number: kind for kind, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    graphs = {
        graph.name.decode(): Counter(kinds[model.operatorCodes[one.opcodeIndex].builtinCode] for one in graph.operators)
        for graph in model.subgraphs
    }
    layers = len(spec.decoder.layers)
    relative = int(spec.decoder.layers[0].attention.relative is not None)
    for rows, call in ((1, "decode_16"), (4, "decode_16_x4")):
        count = graphs[call]
        # Queries, keys and values in one, its output; the source's query, its output; two of the feed-forward, or three.
        assert count["FULLY_CONNECTED"] == layers * (7 if name == "t5" else 6) + 1
        assert count["BATCH_MATMUL"] == 4 * layers
        assert count["DYNAMIC_UPDATE_SLICE"] == 2 * layers
        # The rows' queries of the source and what they get, and the heads of a bias.
        assert count["TRANSPOSE"] == (2 * layers if rows > 1 else 0) + relative
        assert count["GATHER"] == 1 + int(spec.embeddings.position is not None) + relative
        assert count["CAST"] == 1
    assert graphs["reorder_x4"] == Counter(["GATHER"])


def test_both_sides_of_arithmetic_have_one_rank(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    binary = {getattr(schema.BuiltinOperator, kind) for kind in ("ADD", "SUB", "MUL", "DIV", "MINIMUM")}
    ranks: Counter[bool] = Counter()
    for options in OPTIONS.values():
        emit_tflite_seq2seq(
            random_seq2seq(**options), path, recipe="dynamic_wi8_afp32", source_lengths=(8,), target_length=4
        )
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        for graph in model.subgraphs:
            for operator in graph.operators:
                if model.operatorCodes[operator.opcodeIndex].builtinCode in binary:
                    left, right = (graph.tensors[index].shape for index in operator.inputs)
                    ranks[len(left) == len(right)] += 1
    assert ranks[True] > 100
    assert not ranks[False]


def test_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    spec = random_seq2seq()

    def emit(spec: TransformerSpec = spec, **options: Any) -> None:
        given = {"recipe": "fp32", "source_lengths": (8,), "target_length": 8, "beams": (1,)}
        emit_tflite_seq2seq(spec, path, **(given | options))

    with pytest.raises(RecipeError, match=r"No recipe is called 'fp23'\. Did you mean 'fp32'"):
        emit(recipe="fp23")
    with pytest.raises(ConversionError, match=re.escape("source lengths of at least 1, and was given (0,)")):
        emit(source_lengths=(0,))
    with pytest.raises(ConversionError, match=re.escape("target length of at least 1, and was given (0,)")):
        emit(target_length=0)
    with pytest.raises(ConversionError, match=re.escape("beams of at least 1, and was given ()")):
        emit(beams=())
    with pytest.raises(ConversionError, match="reads at most 32 tokens, not 33"):
        emit(source_lengths=(8, 33))
    with pytest.raises(ConversionError, match="reads at most 32 frames, not 34"):
        emit(random_seq2seq(bands=4), source_lengths=(34,))
    with pytest.raises(ConversionError, match="answers with at most 24 positions, not 25"):
        emit(target_length=25)
    for other in (random_decoder(), random_spec()):
        with pytest.raises(ConversionError, match="is no encoder-decoder"):
            emit(other)
    first, second = spec.decoder.layers
    without = replace(second, cross_attention=None)
    with pytest.raises(ConversionError, match="is no encoder-decoder"):
        emit(replace(spec, decoder=Stack((first, without))))
    uneven = random_seq2seq(heads=2).decoder.layers[0]
    with pytest.raises(ConversionError, match="keys of different shapes"):
        emit(replace(spec, decoder=Stack((first, uneven))))
    rotary = Rotary(np.ones(2, np.float32))
    read = spec.encoder.layers[0]
    turned = replace(read, attention=replace(read.attention, rotary=rotary))
    with pytest.raises(ConversionError, match="The encoder of 'translator' has rotary embeddings"):
        emit(replace(spec, encoder=Stack((turned,))))
    with pytest.raises(ConversionError, match="has norms after its blocks"):
        emit(replace(spec, encoder=Stack((replace(read, attention_post_norm=read.attention_norm),))))
    assert first.cross_attention is not None
    capped = replace(first, cross_attention=replace(first.cross_attention, soft_cap=3.0))
    with pytest.raises(ConversionError, match="Cross-attention of 'translator' has"):
        emit(replace(spec, decoder=Stack((capped, second))))
    spec.embeddings.token[3, 5] = np.nan
    with pytest.raises(ModelError, match="1 NaN or infinite"):
        emit()
    assert not path.exists()
