from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from edgelm_converters.emit.notes import decoder_notes, encoder_notes
from edgelm_converters.spec import Layer, TransformerSpec
from spec_factory import random_decoder, random_seq2seq, random_spec

from edgelm.errors import RecipeError


def _with_layers(spec: TransformerSpec, **bits: Any) -> TransformerSpec:
    """Return a model in whose first layer some pieces of the feed-forward have other `least_bits`."""

    def changed(layer: Layer) -> Layer:
        block = layer.feed_forward
        pieces = {name: replace(getattr(block, name), least_bits=count) for name, count in bits.items()}
        return replace(layer, feed_forward=replace(block, **pieces))

    first, *others = spec.encoder.layers
    return replace(spec, encoder=replace(spec.encoder, layers=(changed(first), *others)))


def test_a_recipe_that_is_kept_to_has_no_notes() -> None:
    spec = random_spec(width=64, feed_forward=128, vocabulary=100)
    for recipe in ("fp32", "fp16", "dynamic_wi8_afp32", "weight_only_wi8_afp32"):
        assert encoder_notes(spec, recipe, "tflite") == encoder_notes(spec, recipe, "onnx") == ()
        assert decoder_notes(random_decoder(width=64), recipe) == ()


def test_what_is_wider_is_told_with_its_reason() -> None:
    spec = _with_layers(random_spec(width=64, feed_forward=96, vocabulary=100), up=8, down=16)
    assert encoder_notes(spec, "dynamic_wi4b64_afp32", "onnx") == (
        "embeddings are int8, not int4: they lose too much in 4 bits",
        "1 kernel is int8, not int4: fewer bits were ruled out (layer_0/up)",
        "1 kernel is float16, not int4: fewer bits were ruled out (layer_0/down)",
        "1 kernel is int8, not int4: inputs are no multiple of 64 (layer_1/down)",
    )
    assert encoder_notes(spec, "dynamic_wi8_afp32", "onnx") == (
        "1 kernel is float16, not int8: fewer bits were ruled out (layer_0/down)",
    )
    wide = replace(spec, embeddings=replace(spec.embeddings, least_bits=16))
    assert encoder_notes(wide, "dynamic_wi8_afp32", "tflite")[0] == (
        "embeddings are float16, not int8: fewer bits were ruled out"
    )


def test_layers_that_share_their_weights_are_told_once() -> None:
    spec = random_spec(width=72, heads=4, head_dim=16, feed_forward=64, positions=None, shared_layers=True, layers=3)
    notes = encoder_notes(spec, "dynamic_wi4b32_afp32", "onnx")
    assert notes == (
        "4 kernels are int8, not int4: inputs are no multiple of 32 (layer_0/query, layer_0/key, layer_0/value, …)",
    )


def test_projections_are_judged_as_the_file_has_them() -> None:
    # 72 x 32 is too small to be quantised: three of them as one product are not.
    spec = random_spec(width=72, heads=2, head_dim=16, feed_forward=72, positions=None)
    (note,) = encoder_notes(spec, "dynamic_wi4b32_afp32", "tflite")
    assert note.startswith("10 kernels are int8")
    (note,) = encoder_notes(spec, "dynamic_wi4b32_afp32", "onnx")
    assert note.startswith("4 kernels are int8")


def test_a_language_model_tells_of_embedding_and_head() -> None:
    spec = random_decoder(width=64, feed_forward=96, vocabulary=100)
    assert decoder_notes(spec, "dynamic_wi4b32_afp32") == (
        "embedding and head are int8, not int4: they lose too much in 4 bits",
    )
    assert decoder_notes(spec, "dynamic_wi4b64_afp32")[1:] == (
        "2 kernels are int8, not int4: inputs are no multiple of 64 (layer_0/down, layer_1/down)",
    )
    head = spec.head.tokens
    assert head is not None
    wide = replace(
        spec,
        embeddings=replace(spec.embeddings, least_bits=16),
        head=replace(spec.head, tokens=replace(head, least_bits=16)),
    )
    assert decoder_notes(wide, "dynamic_wi8_afp32") == (
        "embedding and head are float16, not int8: fewer bits were ruled out",
    )


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="No recipe is called 'int3'"):
        encoder_notes(random_spec(), "int3", "tflite")


def test_an_encoder_decoder_is_told_as_a_whole() -> None:
    spec = random_seq2seq(width=96, heads=4, feed_forward=128, source_vocabulary=50, layers=1, encoder_layers=1)
    assert decoder_notes(spec, "dynamic_wi8_afp32") == ()
    (layer,) = spec.decoder.layers
    assert layer.cross_attention is not None
    cross = replace(layer.cross_attention, query=replace(layer.cross_attention.query, least_bits=16))
    spec = replace(spec, decoder=replace(spec.decoder, layers=(replace(layer, cross_attention=cross),)))
    assert spec.source is not None
    assert spec.source.embeddings is not None
    read = replace(spec.source.embeddings, least_bits=16)
    spec = replace(spec, source=replace(spec.source, embeddings=read))
    notes = decoder_notes(spec, "dynamic_wi4b64_afp32")
    assert notes[0] == "embedding and head are float16, not int4: fewer bits were ruled out"
    # Of 96 inputs: four kernels of the encoder and `up`, the same of the decoder, and three more that attend to the source.
    assert any(note.startswith("13 kernels are int8, not int4: inputs are no multiple of 64") for note in notes)
    assert "1 kernel is float16, not int4: fewer bits were ruled out (layer_0/query)" in notes
