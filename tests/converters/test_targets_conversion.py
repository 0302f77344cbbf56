"""A Keras model converted for a target, from the call to the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edgelm_converters import convert
from edgelm_converters.targets.checks import gpu_faults
from edgelm_runtimes import verify

from edgelm.cli import cli
from edgelm.errors import RecipeError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_VOCABULARY, _LENGTH = 40, 12


def _classifier() -> Any:
    keras.utils.set_random_seed(5)
    layers = keras.layers
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = layers.Embedding(_VOCABULARY, 32, mask_zero=True)(ids)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)]))
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(32)(layers.Dense(64, activation="gelu")(x))]))
    return keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)), name="small")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "ids.npz"
    np.savez(path, token_ids=np.random.default_rng(0).integers(1, _VOCABULARY, (32, _LENGTH)).astype(np.int32))
    return path


def test_a_gpus_bundle_has_one_length_and_no_fault(tmp_path: Path) -> None:
    made = convert(_classifier(), tmp_path / "small.edgelm", target="gpu", sequence_length=_LENGTH)
    (artifact,) = made.manifest.artifacts
    assert (artifact.format, made.manifest.recipe) == ("tflite", "fp32")
    assert [signature.sequence_length for signature in artifact.signatures] == [_LENGTH]
    assert f"Made for gpu: tflite; fp32; one fixed length of {_LENGTH} tokens at batch 1." in made.manifest.notes
    assert gpu_faults(made.path / "model.tflite") == []


def test_an_npus_bundle_is_one_shape_in_integers_and_verifies(tmp_path: Path, calibration: Path) -> None:
    made = convert(
        _classifier(), tmp_path / "small.edgelm", target="npu-qnn", sequence_length=_LENGTH, calibration=calibration
    )
    (artifact,) = made.manifest.artifacts
    (signature,) = artifact.signatures
    assert (artifact.format, made.manifest.recipe) == ("onnx", "static_wi8_ai8")
    assert signature.inputs[0].shape == (1, _LENGTH)
    assert signature.outputs[0].dtype == "int8"
    assert verify(made.path).passed


def test_an_edge_tpus_bundle_says_what_maps(tmp_path: Path, calibration: Path) -> None:
    made = convert(
        _classifier(), tmp_path / "small.edgelm", target="coral-usb", sequence_length=_LENGTH, calibration=calibration
    )
    (artifact,) = made.manifest.artifacts
    assert artifact.signatures[0].outputs[0].dtype == "int8"
    assert any("by Coral's documentation: 0 of" in note for note in made.manifest.notes)


def test_a_contradiction_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    _classifier().save(tmp_path / "small.keras")
    model, bundle = str(tmp_path / "small.keras"), tmp_path / "small.edgelm"
    shown = CliRunner().invoke(cli, ["convert", model, "-o", str(bundle), "--for", "gpu", "--recipe", "int8"])
    assert shown.exit_code == 1
    assert not bundle.exists()
    with pytest.raises(RecipeError, match="--for gpu takes no dynamic_wi8_afp32"):
        convert(model, bundle, target="gpu", recipe="int8")
    assert not bundle.exists()


def test_a_traced_model_is_refused_where_every_operator_matters(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(RecipeError, match="--for gpu is for models that edgelm recognises"):
        convert(model, tmp_path / "dense.edgelm", target="gpu")
    assert list(tmp_path.iterdir()) == []
