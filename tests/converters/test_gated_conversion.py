"""The gate in a whole conversion: what passes is written with what it took, and what does not pass is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters import convert
from edgelm_runtimes import verify

from edgelm.bundle import GateRecord
from edgelm.errors import ParityError, RecipeError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_IDS = 120
_LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a block of plain layers whose matrices are large enough for integers."""
    keras.utils.set_random_seed(4)
    layers = keras.layers
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = layers.Embedding(_IDS, 64, mask_zero=True)(ids)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 16)(x, x)]))
    inner = layers.Dense(128, activation="gelu")(x)
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(64)(inner)]))
    return keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)), name="gated")


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    """Return ids whose labels are what Keras itself answers."""
    ids = np.random.default_rng(1).integers(1, _IDS, (200, 12)).astype(np.int32)
    path = tmp_path_factory.mktemp("data") / "validation.npz"
    np.savez(path, token_ids=ids, labels=np.asarray(model(ids)).argmax(axis=-1))
    return path


def _gate(model: Any, validation: Path, folder: Path, **options: Any) -> GateRecord:
    made = convert(
        model, folder / "m.edgelm", to=["tflite"], labels=_LABELS, validation=validation, force=True, **options
    )
    assert verify(made.path).passed
    gate = made.manifest.artifacts[0].gate
    assert gate is not None
    return gate


def test_parts_are_kept_until_the_error_is_what_was_allowed(model: Any, validation: Path, tmp_path: Path) -> None:
    loose = _gate(model, validation, tmp_path, recipe="int4", metric="parity", max_drop=1.0, sensitivity=True)
    assert len(loose.steps) == 1
    allowed = loose.value / 4  # what 4 bits alone do not reach, and 16 bits do by far
    strict = _gate(model, validation, tmp_path, recipe="int4", metric="parity", max_drop=allowed)
    assert len(strict.steps) > 1
    assert strict.value <= allowed < strict.steps[-2].value
    assert strict.steps[-1].size_bytes > strict.steps[0].size_bytes
    # The first part that is kept is the one that costs most by itself.
    assert strict.steps[1].kept[0].startswith(next(iter(strict.ranking)))
    assert list(strict.ranking.values()) == sorted(strict.ranking.values(), reverse=True)


def test_what_nothing_reaches_is_not_written(model: Any, validation: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"No dynamic_wi4b32_afp32 artifact keeps what --max-drop 1e-09 asks for"):
        convert(
            model,
            tmp_path / "m.edgelm",
            to=["onnx"],
            recipe="int4",
            validation=validation,
            metric="parity",
            max_drop=1e-9,
        )
    assert list(tmp_path.iterdir()) == []


def test_accuracy_is_measured_on_the_artifact_and_beside_keras(model: Any, validation: Path, tmp_path: Path) -> None:
    gate = _gate(model, validation, tmp_path, recipe="int8", metric="accuracy", max_drop=0.05)
    assert (gate.keras, gate.samples, gate.data) == (1.0, 200, "validation.npz")
    assert 0.95 <= gate.value <= 1


@pytest.mark.parametrize(
    ("metric", "message"), [("perplexity", "is of models that write text"), ("bleu", "is of models that write text")]
)
def test_a_metric_of_other_models_is_refused(
    model: Any, validation: Path, tmp_path: Path, metric: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        convert(
            model,
            tmp_path / "m.edgelm",
            to=["tflite"],
            labels=_LABELS,
            validation=validation,
            metric=metric,
            max_drop=0.1,
        )


def test_accuracy_needs_labels(model: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs labelled data"):
        convert(model, tmp_path / "m.edgelm", to=["tflite"], metric="accuracy", max_drop=0.1)
