"""KerasHub's T5, BART and Whisper as specs: computed in float64 and held to Keras's own scores at every position."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import NotRecognised, bart, recognise, t5, whisper
from edgelm_converters.relative import relative_buckets
from edgelm_converters.seq2seq_reference import keras_pair_scores
from edgelm_converters.source import load_source
from edgelm_converters.spec import TransformerSpec, parameters
from numpy.typing import NDArray
from reference import forward

from edgelm.errors import ConversionError, ModelError

pytestmark = [
    pytest.mark.needs_tensorflow,
    pytest.mark.filterwarnings(
        "ignore:Layer '.*' .of type .*. was passed an input with a mask"
    ),  # of KerasHub's own layers
]
keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")

from seq2seq_models import FEED_FORWARD, LENGTH, TARGET, WIDTH, make_hub  # noqa: E402
from seq2seq_pairs import assert_scores, make_pairs  # noqa: E402

# What differs from the usual sizes.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5, gated": ("T5", {}),
    "t5, not gated": ("T5", {"use_gated_activation": False, "activation": "gelu"}),
    "t5, untied": ("T5", {"tie_embedding_weights": False, "layer_norm_epsilon": 1e-3}),
    "bart": ("Bart", {}),
    "whisper": ("Whisper", {}),
}
# KerasHub takes seconds to build a T5: one model a case for all tests that only read it.
built = functools.cache(lambda case: make_hub(CASES[case][0], **CASES[case][1]))
T5, BART, WHISPER = "t5, gated", "bart", "whisper"
READERS = {"T5": t5.read, "Bart": bart.read, "Whisper": whisper.read}


def read(model: Any, sequence_length: int | None = None) -> TransformerSpec:
    recognition = recognise(model, sequence_length)
    assert recognition.spec is not None, recognition.reason
    assert recognition.family == recognition.spec.family
    return recognition.spec


@pytest.mark.parametrize("case", CASES)
def test_a_backbone_scores_as_keras_does(case: str) -> None:
    model = built(case)
    spec = read(model)
    assert spec.family == CASES[case][0].lower()
    assert spec.translates
    assert not spec.generates
    assert (spec.token_input, spec.output_name, spec.mask) == ("decoder_token_ids", "logits", "none")
    assert_scores(model, spec)


@pytest.mark.parametrize("case", [case for case, (family, _) in CASES.items() if family != "Whisper"])
def test_a_task_is_read_as_its_backbone_and_scores_itself(case: str) -> None:
    """The task's own scores are KerasHub's head: what `keras_pair_scores` does for a backbone is held to it."""
    backbone = built(case)
    task = getattr(keras_hub.models, f"{CASES[case][0]}Seq2SeqLM")(backbone=backbone, preprocessor=None)
    spec = read(task)
    own = dict(parameters(read(backbone)))
    assert all(np.array_equal(value, own[path]) for path, value in parameters(spec))
    sources, lengths, targets = make_pairs(spec, 7, 5)
    by_task = keras_pair_scores(task, spec)(sources, lengths, targets)
    by_backbone = keras_pair_scores(backbone, spec)(sources, lengths, targets)
    # The same product, of the same numbers; T5's factor may be rounded differently, once in each element.
    np.testing.assert_allclose(by_backbone, by_task, rtol=0, atol=1e-6 * float(np.abs(by_task).max()))


def test_what_the_three_share_and_where_they_differ() -> None:
    specs = {family: read(built(case)) for family, case in zip(READERS, (T5, BART, WHISPER), strict=True)}
    for family, spec in specs.items():
        assert spec.source is not None
        assert spec.head.tokens is not None
        assert spec.head.tokens.table is spec.embeddings.token
        assert all(layer.attention.causal for layer in spec.decoder.layers)
        assert all(layer.cross_attention is not None for layer in spec.decoder.layers)
        assert not any(layer.attention.causal or layer.cross_attention for layer in spec.encoder.layers)
        assert spec.decoder.layers[0].norm_placement == ("post" if family == "Bart" else "pre")
    for family in ("T5", "Bart"):
        source = specs[family].source
        assert source is not None
        assert source.embeddings is not None
        assert source.embeddings.token is specs[family].embeddings.token
        assert (source.mask, source.input, source.mask_input) == ("input", "encoder_token_ids", "encoder_padding_mask")
    heard = specs["Whisper"].source
    assert heard is not None
    assert (heard.mask, heard.input, heard.embeddings) == ("none", "encoder_features", None)
    assert all(layer.attention.key.bias is None for layer in specs["Whisper"].encoder.layers)
    assert all(layer.attention.query.bias is not None for layer in specs["Whisper"].encoder.layers)


def test_t5_shares_one_table_of_distances_in_each_stack() -> None:
    spec = read(built(T5))
    for stack, bidirectional in ((spec.encoder, True), (spec.decoder, False)):
        tables = {id(layer.attention.relative.table) for layer in stack.layers if layer.attention.relative is not None}
        assert len(tables) == 1
        assert stack.layers[0].attention.relative is not None
        assert stack.layers[0].attention.relative.bidirectional is bidirectional
    assert all(layer.cross_attention is not None for layer in spec.decoder.layers)
    assert all(layer.cross_attention.relative is None for layer in spec.decoder.layers if layer.cross_attention)


def test_t5_counts_its_buckets_as_keras_hub_does() -> None:
    """Also far beyond what the scores above reach: 200 tokens pass the last bucket."""
    model = built(T5)
    spec = read(model)
    distance = np.arange(-200, 201)
    for stack, layers in (
        (spec.encoder, model.encoder_transformer_layers),
        (spec.decoder, model.decoder_transformer_layers),
    ):
        bias, attention = stack.layers[0].attention.relative, layers[0].self_attention
        assert bias is not None
        expected = attention._relative_position_bucket(
            keras.ops.convert_to_tensor(distance, "int32"), bidirectional=bias.bidirectional
        )
        np.testing.assert_array_equal(relative_buckets(distance, bias), np.asarray(expected))


def test_description() -> None:
    heard, read_ = read(make_hub("Whisper", num_layers=3)).describe(), read(built(BART)).describe()
    assert (heard["layers"], heard["encoder_layers"], heard["source_bands"]) == (3, 3, 5)
    assert (heard["max_length"], heard["source_max_length"], heard["tied"]) == (LENGTH, 2 * LENGTH, True)
    assert (read_["source_vocabulary"], read_["vocabulary"], read_["source_mask"]) == (TARGET, TARGET, "input")
    assert (read_["width"], read_["feed_forward"]) == (WIDTH, FEED_FORWARD)


def test_a_saved_model_is_read_and_scores_the_same(tmp_path: Path) -> None:
    for case in (T5, BART):
        model = built(case)
        spec = read(model)
        model.save(tmp_path / "model.keras")
        loaded = load_source(tmp_path / "model.keras", custom_objects=None).model
        again = dict(parameters(read(loaded)))
        assert all(np.array_equal(value, again[path]) for path, value in parameters(spec))
        pairs = make_pairs(spec, 5, 4)
        np.testing.assert_array_equal(keras_pair_scores(loaded, spec)(*pairs), keras_pair_scores(model, spec)(*pairs))


@pytest.mark.parametrize("case", [BART, WHISPER])
def test_more_tokens_than_positions_are_refused(case: str) -> None:
    with pytest.raises(ModelError, match=f"has {LENGTH} positions and cannot take {LENGTH + 1}"):
        recognise(built(case), LENGTH + 1)


def test_t5_takes_any_length() -> None:
    spec = read(built(T5), 5000)
    assert spec.max_length is None
    assert spec.source is not None
    assert spec.source.max_length is None


@pytest.mark.parametrize("case", [T5, BART, WHISPER])
def test_a_layer_of_another_class_is_refused(case: str) -> None:
    model = built(case)
    layer = model.decoder_transformer_layers[1]
    kind = type(layer)
    layer.__class__ = type("Mine", (kind,), {})
    try:
        with pytest.raises(NotRecognised, match=f"is a .*Mine, and KerasHub's {kind.__name__} was expected"):
            READERS[CASES[case][0]](model, None)
    finally:
        layer.__class__ = kind


def test_each_reader_leaves_the_others_models_alone() -> None:
    for family, reader in READERS.items():
        for case in (T5, BART, WHISPER):
            if CASES[case][0] != family:
                with pytest.raises(NotRecognised, match=f"is not KerasHub's .*{family}"):
                    reader(built(case), None)


# The reference


def test_a_pair_scores_the_same_alone_and_beside_longer_ones() -> None:
    model = built(BART)
    spec = read(model)
    scores = keras_pair_scores(model, spec)
    sources, lengths, targets = make_pairs(spec, 8, 4)
    together = scores(sources, lengths, targets)
    for row, length in enumerate(lengths):
        alone = scores(sources[row : row + 1, :length], lengths[row : row + 1], targets[row : row + 1, :3])
        assert alone.shape == (1, 3, TARGET)
        # Sums of other lengths, in another order; masked terms are exactly 0.
        np.testing.assert_allclose(alone[0], together[row, :3], rtol=0, atol=2e-6 * float(np.abs(together).max()))


def test_frames_are_heard_to_their_end() -> None:
    model = built(WHISPER)
    spec = read(model)
    frames, _, targets = make_pairs(spec, 8, 3)
    scores = keras_pair_scores(model, spec)(frames, np.array([8, 5, 8], np.int32), targets)
    for row, count in enumerate((8, 5, 8)):
        inputs = {"encoder_features": frames[row : row + 1, :count], "decoder_token_ids": targets[row : row + 1]}
        np.testing.assert_allclose(forward(spec, inputs)[0], scores[row], rtol=0, atol=_bound(scores))


def test_what_is_no_number_is_an_error() -> None:
    model = make_hub("Bart")
    spec = read(model)
    model.token_embedding.embeddings.assign(np.full((TARGET, WIDTH), np.nan))
    with pytest.raises(ConversionError, match="itself answers with NaN or infinity"):
        keras_pair_scores(model, spec)(*make_pairs(spec, 3, 2))


def test_a_model_without_scores_is_an_error() -> None:
    model = built(BART)
    spec = read(model)
    hidden = keras.Model(model.input, model.output["decoder_sequence_output"])
    with pytest.raises(
        ConversionError, match=rf"gives \[3, 2, {WIDTH}\], and no score for each of its {TARGET} tokens"
    ):
        keras_pair_scores(hidden, spec)(*make_pairs(spec, 3, 2))


def test_only_an_encoder_decoder_is_asked_for_pairs() -> None:
    model = built(BART)
    with pytest.raises(ConversionError, match="reads no source"):
        keras_pair_scores(model, dataclasses.replace(read(model), source=None))


def _bound(scores: NDArray[np.float32]) -> float:
    return 2e-5 * max(1.0, float(np.abs(scores).max()))
