"""Whole chains in one conversion: the model gets smaller, its files hold it, and the manifest says what was done."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters import convert
from edgelm_converters.keras_model import build_keras_model
from edgelm_runtimes import load, verify
from spec_factory import random_decoder, random_spec

from edgelm.errors import RecipeError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_WORDS = tuple(f"w{index}" for index in range(118))
_LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: index + 2 for index, word in enumerate(_WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return texts of half of the words."""
    generator = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("data") / "data.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for index in range(80):
            writer.writerow((" ".join(generator.choice(_WORDS[:59], 4 + index % 12)), _LABELS[index % 3]))
    return path


def _encoder() -> Any:
    spec = random_spec(
        layers=2, width=64, heads=4, feed_forward=128, vocabulary=120, positions=32, head=((3, "linear"),)
    )
    return build_keras_model(spec)


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "chain.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_trimming_pruning_and_static_ranges_in_one_file(tmp_path: Path, tokenizer: Path, data: Path) -> None:
    recipe = _recipe(
        tmp_path,
        f"""
        [[step]]
        do = "trim-vocabulary"
        corpus = "{data}"

        [[step]]
        do = "prune"
        heads = 0.25
        ffn = 0.25

        [quantize]
        recipe = "static_wi8_ai8"

        [gate]
        metric = "parity"
        max-drop = 1.0
        """,
    )
    made = convert(
        _encoder(),
        tmp_path / "m.edgelm",
        recipe=recipe,
        tokenizer=tokenizer,
        labels=_LABELS,
        calibration=data,
        validation=data,
    )
    manifest = made.manifest
    assert [step.step for step in manifest.compression] == ["trim-vocabulary", "prune"]
    trim, prune = manifest.compression
    assert trim.parameters_before > trim.parameters_after == prune.parameters_before > prune.parameters_after
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.vocabulary_size == 59 + 2  # the words of the corpus, padding and unknown
    assert manifest.calibration is not None
    assert (manifest.calibration.samples, manifest.calibration.ranges) == (80, "percentile")
    assert manifest.calibration.sha256 is not None
    for artifact in manifest.artifacts:
        assert artifact.gate is not None
        assert any("float32" in note for note in artifact.notes)
    assert verify(made.path).passed


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_integers_at_the_output_are_numbers_to_a_session(
    tmp_path: Path, tokenizer: Path, data: Path, target: str
) -> None:
    options: dict[str, Any] = {"to": [target], "tokenizer": tokenizer, "labels": _LABELS, "calibration": data}
    whole = convert(_encoder(), tmp_path / "f.edgelm", recipe="fp32", **options)
    made = convert(_encoder(), tmp_path / "i.edgelm", recipe="full-int8", integer_io=True, **options)
    port = made.manifest.artifacts[0].signatures[0].outputs[0]
    assert port.dtype in ("int8", "uint8")
    assert port.scale is not None
    runtime = {"tflite": "litert", "onnx": "onnx"}[target]
    text = "w1 w5 w9 w12"
    with load(whole.path, runtime=runtime) as exact, load(made.path, runtime=runtime) as rounded:
        wanted, found = (dict(session.classify(text, top=3).ranking) for session in (exact, rounded))
    # The probabilities of three classes, from logits that are off by a few steps of 1/255 of their range.
    assert max(abs(wanted[label] - found[label]) for label in _LABELS) < 0.15


def test_a_pruned_model_that_is_taught_keeps_its_shape(tmp_path: Path, tokenizer: Path, data: Path) -> None:
    recipe = _recipe(
        tmp_path,
        f"""
        [[step]]
        do = "prune"
        ffn = 0.5

        [[step]]
        do = "distil"
        data = "{data}"
        epochs = 1
        """,
    )
    made = convert(
        _encoder(),
        tmp_path / "m.edgelm",
        to=["onnx"],
        recipe=recipe,
        tokenizer=tokenizer,
        labels=_LABELS,
        calibration=data,
    )
    assert [step.step for step in made.manifest.compression] == ["prune", "distil"]
    prune, distil = made.manifest.compression
    assert distil.parameters_after == prune.parameters_after
    assert "80 samples of data.csv" in distil.notes[0]


def test_a_language_model_is_trimmed_with_the_ids_that_end_its_texts(
    tmp_path: Path, tokenizer: Path, data: Path
) -> None:
    model = build_keras_model(random_decoder(layers=2, width=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=120))
    made = convert(
        model, tmp_path / "m.edgelm", to=["onnx"], recipe="fp32", tokenizer=tokenizer, trim_vocabulary=data, prune="heads=0.5",
        calibration=data, sequence_length=48,
    )  # fmt: skip
    generation = made.manifest.generation
    assert generation is not None
    assert generation.vocabulary_size == 61
    assert made.manifest.artifacts[0].signatures[0].cache is not None
    assert verify(made.path).passed
    with load(made.path) as session:
        answer = session.generate("w1 w2 w3", max_new_tokens=4)
        words = "".join(answer).split()
    assert len(words) == len(answer.result.ids) == 4
    assert set(words) <= {*_WORDS[:59], "[PAD]", "[UNK]"}


def test_a_traced_model_cannot_be_made_smaller(tmp_path: Path, data: Path) -> None:
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(RecipeError, match="was traced"):
        convert(model, tmp_path / "m.edgelm", prune="ffn=0.5")
    with pytest.raises(RecipeError, match="written for recognised models"):
        convert(model, tmp_path / "m.edgelm", recipe="full-int8")
    assert list(tmp_path.iterdir()) == []


def test_a_static_recipe_needs_data(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs real inputs to calibrate"):
        convert(_encoder(), tmp_path / "m.edgelm", recipe="full-int8")
