"""A spec as a Keras model: what it computes, what it is saved as, and what comes back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters import convert
from edgelm_converters.causal_reference import keras_scores
from edgelm_converters.families import recognise
from edgelm_converters.keras_model import build_keras_model, carried_tokenizer, read_keras_model
from edgelm_converters.reference import make_reference
from edgelm_converters.source import load_source
from edgelm_converters.spec import Grid, TransformerSpec, parameters
from reference import forward
from spec_factory import random_decoder, random_inputs, random_spec

from edgelm.errors import ModelError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_SPECS = {
    "post-norm, segments, first": random_spec(segments=2),
    "pre-norm, projection": random_spec(embedding_width=8, norm_placement="pre", final_norm=True, pooling="first"),
    "mask input, max, shared layers": random_spec(
        mask="input", pooling="max", shared_layers=True, output="probabilities"
    ),
    "decoder, groups, rotary": random_decoder(),
    "decoder, untied, biased": random_decoder(tied=False, biases=True, head_bias=True, positions=64),
    "rms, gated, sees its padding, sigmoid": random_spec(
        norm="rms", gated=True, activation="gelu_tanh", mask="none", pooling_masked=False, output="sigmoid", kv_heads=1
    ),
    "decoder, query and key norms, part turned": random_decoder(query_key_norm=True, rotary=4, rotary_factor=1.2),
    "decoder, windows, caps": random_decoder(windows=(4, None), soft_cap=5.0, head_soft_cap=3.0, post_norms=True),
}


def _padded(spec: TransformerSpec) -> dict[str, Any]:
    rows = [random_inputs(spec, 9, real=real, seed=real) for real in (9, 4)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
def test_it_computes_what_the_spec_says(spec: TransformerSpec) -> None:
    inputs = _padded(spec)
    found = np.asarray(build_keras_model(spec)(inputs))
    wanted = forward(spec, inputs)
    assert found.shape == wanted.shape
    # float32 sums of up to 64 terms, some twenty of them one after the other: 20 * sqrt(64) * 2^-24 of the largest value.
    assert np.abs(found - wanted).max() <= 20 * 8 * 2**-24 * max(np.abs(wanted).max(), 1)


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
def test_it_is_saved_and_read_back_exactly(spec: TransformerSpec, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    build_keras_model(spec, tokenizer='{"a": 1}').save(path)
    source = load_source(path)
    again = recognise(source.model, None)
    assert (again.family, carried_tokenizer(source.model)) == ("edgelm", '{"a": 1}')
    assert again.spec is not None
    mine, theirs = list(parameters(again.spec)), list(parameters(spec))
    assert [name for name, _ in mine] == [name for name, _ in theirs]
    for (_, array), (_, wanted) in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert again.spec.describe() == spec.describe()


def test_a_language_model_is_asked_as_any_other(tmp_path: Path) -> None:
    spec = random_decoder()
    path = tmp_path / "model.keras"
    build_keras_model(spec).save(path)
    source = load_source(path)
    ids = random_inputs(spec, 7)[spec.token_input]
    found = keras_scores(source.model, make_reference(source), spec)(ids[0])
    wanted = forward(spec, {spec.token_input: ids})[0]
    assert np.abs(found - wanted).max() <= 20 * 8 * 2**-24 * max(np.abs(wanted).max(), 1)  # as above


def test_every_weight_is_trained_but_frequencies() -> None:
    spec = random_decoder()
    model = build_keras_model(spec)
    tf = pytest.importorskip("tensorflow")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(_padded(spec))))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    rotaries = {id(layer.attention.rotary.frequencies) for layer in spec.decoder.layers if layer.attention.rotary}
    assert len(model.non_trainable_variables) == len(rotaries) > 0


def test_uneven_layers_as_pruning_leaves_them() -> None:
    spec = random_spec(layers=2)
    layer = spec.encoder.layers[1]
    up, down = layer.feed_forward.up, layer.feed_forward.down
    assert up.bias is not None
    narrow = dataclasses.replace(
        layer.feed_forward,
        up=dataclasses.replace(up, kernel=up.kernel[:, :8], bias=up.bias[:8]),
        down=dataclasses.replace(down, kernel=down.kernel[:8]),
    )
    layers = (spec.encoder.layers[0], dataclasses.replace(layer, feed_forward=narrow))
    spec = dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, layers=layers))
    inputs = _padded(spec)
    np.testing.assert_allclose(np.asarray(build_keras_model(spec)(inputs)), forward(spec, inputs), atol=2e-5)


def test_what_was_prepared_for_few_bits_is_no_model_to_train() -> None:
    spec = random_decoder(layers=1)
    layer = spec.decoder.layers[0]
    query = dataclasses.replace(layer.attention.query, grid=Grid(np.ones((1, 1), np.float32)))
    layers = (dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, query=query)),)
    with pytest.raises(ModelError, match="prepared for few bits"):
        build_keras_model(dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, layers=layers)))


def test_any_other_model_is_none_of_these() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert read_keras_model(model) is None
    assert carried_tokenizer(model) is None


@pytest.mark.parametrize("spec", [_SPECS["post-norm, segments, first"], _SPECS["decoder, groups, rotary"]])
def test_it_converts_like_the_model_that_it_was_made_from(spec: TransformerSpec, tmp_path: Path) -> None:
    made = convert(build_keras_model(spec), tmp_path / "m.edgelm", to=["onnx"], recipe="fp32", sequence_length=32)
    assert (made.manifest.model.path, made.manifest.model.family) == ("recognised", "edgelm")
    assert made.manifest.model.parameters == sum(array.size for _, array in parameters(spec))
