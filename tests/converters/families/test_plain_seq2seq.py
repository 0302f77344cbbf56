"""Encoder-decoders of plain layers, as keras.io's translation examples build them, held to Keras's own scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import recognise
from edgelm_converters.seq2seq_reference import keras_pair_scores
from edgelm_converters.source import load_source
from edgelm_converters.spec import TransformerSpec, parameters

pytestmark = [
    pytest.mark.needs_tensorflow,
    pytest.mark.filterwarnings(
        "ignore:Layer '.*' .of type .*. was passed an input with a mask"
    ),  # of KerasHub's own layers
]
keras = pytest.importorskip("keras")
layers, ops = keras.layers, keras.ops

from seq2seq_models import (  # noqa: E402
    FEED_FORWARD,
    HEADS,
    LENGTH,
    SOURCE,
    TARGET,
    WIDTH,
    example,
    hub_example,
    randomise,
)
from seq2seq_pairs import assert_scores, make_pairs  # noqa: E402


def read(model: Any, sequence_length: int | None = None) -> TransformerSpec:
    recognition = recognise(model, sequence_length)
    assert recognition.spec is not None, recognition.reason
    assert recognition.family == "plain"
    assert recognition.spec.translates
    return recognition.spec


def refusal(model: Any) -> str:
    recognition = recognise(model, None)
    assert recognition.spec is None
    assert recognition.reason is not None
    return recognition.reason


# The published examples


@pytest.mark.parametrize(
    ("settings", "mask"),
    [
        ({}, "nonzero"),
        ({"softmax": False, "sinusoidal": True, "built_in": True}, "nonzero"),
        ({"hides": False}, "nonzero"),  # Keras's attention takes the mask that hangs on the tensor
        ({"masks": False, "blocks": 2}, "none"),
    ],
)
def test_the_example_of_keras(settings: dict[str, Any], mask: str) -> None:
    model = example(**settings)
    spec = read(model, 30)
    source = spec.source
    assert source is not None
    assert source.embeddings is not None
    assert (source.mask, source.input, source.mask_input) == (mask, "encoder_inputs", None)
    assert (spec.token_input, spec.output_name, spec.mask, spec.family) == ("decoder_inputs", "logits", "none", "plain")
    assert (len(source.embeddings.token), spec.vocabulary_size, spec.width) == (SOURCE, TARGET, WIDTH)
    longest = 30 if settings.get("sinusoidal") else LENGTH  # computed rows have no end: what was asked for
    assert (source.max_length, spec.max_length) == (longest, longest)
    # The examples' sinusoids are the same on both sides: one table.
    assert (source.embeddings.position is spec.embeddings.position) == bool(settings.get("sinusoidal"))
    assert_scores(model, spec)


@pytest.mark.parametrize(
    ("settings", "mask"),
    [
        ({}, "none"),
        ({"mask_zero": True}, "nonzero"),
        ({"mask_zero": True, "first": True, "nested": False, "blocks": 2}, "nonzero"),
        ({"hides": ("encoder", "decoder"), "nested": False}, "nonzero"),
    ],
)
def test_the_example_of_keras_hub(settings: dict[str, Any], mask: str) -> None:
    pytest.importorskip("keras_hub")
    model = hub_example(**settings)
    spec = read(model)
    assert spec.source is not None
    assert (spec.source.mask, spec.source.max_length, spec.max_length) == (mask, LENGTH, LENGTH)
    assert spec.decoder.layers[0].norm_placement == ("pre" if settings.get("first") else "post")
    assert_scores(model, spec)


def test_a_saved_example_is_read_and_scores_the_same(tmp_path: Path) -> None:
    model = example()
    spec = read(model)
    model.save(tmp_path / "translator.keras")
    loaded = load_source(tmp_path / "translator.keras", custom_objects=None).model
    again = dict(parameters(read(loaded)))
    assert all(np.array_equal(value, again[path]) for path, value in parameters(spec))
    pairs = make_pairs(spec, 6, 4)
    np.testing.assert_array_equal(keras_pair_scores(loaded, spec)(*pairs), keras_pair_scores(model, spec)(*pairs))


# Other ways to write one


def attend(x: Any, value: Any, **settings: Any) -> Any:
    return layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(x, value, **settings)


def pre_norm(
    *,
    mask_input: bool = False,
    both_axes: bool = False,
    final_norms: bool = True,
    shared: bool = False,
    causal_encoder: bool = False,
    causal_cross: bool = False,
    causal: bool = True,
    head: bool = True,
    feed_forward: bool = True,
) -> Any:
    """Return a pre-norm encoder-decoder without custom layers, whose masks are arguments."""
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("text", "answer")]
    table = layers.Embedding(TARGET, WIDTH)
    mask = ops.not_equal(inputs[0], 0)
    if mask_input:
        inputs.append(keras.Input((None,), dtype="int32", name="text_mask"))
        mask = ops.cast(inputs[2], "bool")
    hides = mask[:, None, :]

    def feed(x: Any) -> Any:
        inner = layers.LayerNormalization()(x)
        return x + layers.Dense(WIDTH)(layers.Dense(FEED_FORWARD, activation="gelu")(inner))

    x = (table if shared else layers.Embedding(SOURCE, WIDTH))(inputs[0])
    for _ in range(2):
        normed = layers.LayerNormalization()(x)
        x = feed(x + attend(normed, normed, attention_mask=hides, use_causal_mask=causal_encoder))
    memory = layers.LayerNormalization()(x) if final_norms else x
    crossing = ops.logical_and(ops.not_equal(inputs[1], 0)[:, :, None], hides) if both_axes else hides
    x = table(inputs[1])
    for _ in range(2):
        normed = layers.LayerNormalization()(x)
        x = x + attend(normed, normed, use_causal_mask=causal)
        x = x + attend(layers.LayerNormalization()(x), memory, attention_mask=crossing, use_causal_mask=causal_cross)
        x = feed(x) if feed_forward else x
    x = layers.LayerNormalization()(x) if final_norms else x
    if head:
        x = layers.Dense(TARGET, use_bias=False)(x)
    return randomise(keras.Model(inputs, x))


@pytest.mark.parametrize(
    "settings", [{}, {"mask_input": True, "final_norms": False}, {"shared": True}, {"both_axes": True}], ids=str
)
def test_masks_as_arguments(settings: dict[str, Any]) -> None:
    model = pre_norm(**settings)
    spec = read(model)
    source = spec.source
    assert source is not None
    assert source.embeddings is not None
    assert (source.input, spec.token_input) == ("text", "answer")
    expected = ("input", "text_mask") if settings.get("mask_input") else ("nonzero", None)
    assert (source.mask, source.mask_input) == expected
    assert (source.embeddings.token is spec.embeddings.token) == bool(settings.get("shared"))
    assert (source.max_length, spec.max_length) == (None, 512)  # without positions: as far as the mask was seen
    assert_scores(model, spec)


def test_stated_lengths_are_the_bounds() -> None:
    model = example(lengths=(9, 11))
    spec = read(model)
    assert spec.source is not None
    assert (spec.source.max_length, spec.max_length) == (9, 11)
    assert_scores(model, spec)  # shorter ones are filled up for Keras


def test_the_translator_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[3] / "examples" / "translation"
    monkeypatch.syspath_prepend(str(folder))
    from model import build_translator  # type: ignore[import-not-found]

    built = build_translator(TARGET, width=15, heads=5, feed_forward=FEED_FORWARD, max_length=LENGTH)
    spec = read(randomise(built))
    assert spec.source is not None
    assert (len(spec.encoder.layers), len(spec.decoder.layers), spec.source.mask) == (3, 2, "nonzero")
    assert_scores(built, spec)


# What a spec cannot say


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cross": "target", "lengths": (7, 7)}, "attends to an encoder, through a mask that is causal"),
        ({"blocks": 2}, "hides the source's padding, and .* does not: give each of them the mask as an argument"),
        ({"masks": False, "lengths": (7, None)}, "the source takes 7 tokens only, and the model sees its padding"),
    ],
)
def test_what_the_example_may_become(settings: dict[str, Any], reason: str) -> None:
    """With two blocks, Keras's own decoder sees the padding in the second: the mask was taken off the encoder's output."""
    assert re.search(reason, refusal(example(**settings)))


def test_keras_itself_shows_the_second_block_its_padding() -> None:
    """Why such a model is refused: its answers depend on how far the source is padded."""
    one, two = (example(softmax=False, blocks=blocks) for blocks in (1, 2))
    source = np.arange(1, 6)[None]
    target = np.array([[3, 4, 5]])
    for model, sees in ((one, False), (two, True)):
        short = np.asarray(model({"encoder_inputs": source, "decoder_inputs": target}))
        padded = np.asarray(model({"encoder_inputs": np.pad(source, ((0, 0), (0, 3))), "decoder_inputs": target}))
        assert (float(np.abs(short - padded).max()) > 1e-3) is sees


@pytest.mark.parametrize("hides", ["encoder", "decoder"])
def test_a_source_mask_that_is_forgotten_is_refused(hides: str) -> None:
    pytest.importorskip("keras_hub")
    found = refusal(hub_example(nested=False, hides=(hides,)))
    assert "hides the source's padding, and" in found


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"causal_encoder": True}, "is causal, in an encoder"),
        ({"causal": False}, "is not causal, in a decoder"),
        ({"causal_cross": True}, "attends to an encoder, through a mask that is causal"),
        ({"head": False}, f"one layer that scores each of {TARGET} tokens was expected"),
        ({"feed_forward": False}, "a feed-forward's Dense layer was expected"),
    ],
    ids=str,
)
def test_what_is_no_such_model_is_refused(settings: dict[str, Any], reason: str) -> None:
    assert reason in refusal(pre_norm(**settings))


def test_an_encoder_of_another_width_is_refused() -> None:
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("text", "answer")]
    x = layers.Embedding(SOURCE, 12)(inputs[0])
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 6)(x, x))
    memory = layers.LayerNormalization()(x + layers.Dense(12)(layers.Dense(FEED_FORWARD)(x)))
    x = layers.Embedding(TARGET, WIDTH)(inputs[1])
    x = layers.LayerNormalization()(x + attend(x, x, use_causal_mask=True))
    x = layers.LayerNormalization()(x + attend(x, memory))
    x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(layers.Dense(FEED_FORWARD)(x)))
    found = refusal(keras.Model(inputs, layers.Dense(TARGET)(x)))
    assert f"has queries of width {WIDTH}, and attends to another width" in found
