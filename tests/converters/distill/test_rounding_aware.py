"""A model is trained for its recipe's rounding, and answers better with it: in the runtime, not in Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgelm_converters.data import Dataset
from edgelm_converters.distill import Training, distil_spec
from edgelm_converters.emit.blocks import quantize_blocks
from edgelm_converters.emit.onnx import emit_onnx
from edgelm_converters.emit.quantize import quantize_weight
from edgelm_converters.recipes import find
from edgelm_converters.spec import TransformerSpec
from numpy.typing import NDArray
from spec_factory import random_decoder, random_spec

from edgelm.errors import RecipeError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow


def _answers(spec: TransformerSpec, recipe: str, ids: NDArray[np.int32], folder: Path) -> NDArray[np.float32]:
    """Return what ONNX Runtime answers to a file of the recipe, less what is the same for all classes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = folder / "model.onnx"
    emit_onnx(spec, path, recipe=recipe)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {spec.token_input: ids})[0]
    return found - found.mean(axis=-1, keepdims=True)  # what a softmax takes of them


def test_training_for_four_bits_makes_up_for_half_of_their_error(task: Callable[..., Dataset], tmp_path: Path) -> None:
    """The teacher's own answers are what is wanted: rounding is all that is between them and the student's."""
    teacher = random_spec(
        width=64, feed_forward=128, vocabulary=48, positions=16, head=((4, "linear"),), norm="rms", biases=False, seed=2
    )
    recipe = find("int4")
    training = Training(epochs=6, batch_size=32, learning_rate=1e-3, hard=0.0, temperature=1.0, recipe="int4", seed=3)
    lessons, held_out = task(1, 384, labelled=False), task(2, 256, labelled=False)
    taught, record = distil_spec(teacher, teacher, lessons, None, validation=held_out, training=training)
    assert record.before is not None
    assert record.after is not None
    assert record.after.student >= record.before.student  # measured with its rounding, the untrained one among them
    assert held_out.arrays is not None
    ids = held_out.arrays["token_ids"]
    wanted = _answers(teacher, "fp32", ids, tmp_path)
    before, after = (np.mean((_answers(spec, recipe.name, ids, tmp_path) - wanted) ** 2) for spec in (teacher, taught))
    assert after < 0.5 * before


def test_a_training_rounds_as_the_emitters_do() -> None:
    from edgelm_converters.keras_model.rounded import RoundedKernel

    kernel = np.random.default_rng(4).standard_normal((64, 96)).astype(np.float32)
    eye = np.eye(64, dtype=np.float32)
    steps, scale = quantize_weight(kernel, 1)
    found = np.asarray(RoundedKernel(keras.ops.array(kernel), None, "float32").apply(eye))
    # Three roundings of float32 lie between a step times its scale here and there.
    np.testing.assert_allclose(found, steps * scale, rtol=1e-6, atol=1e-6)
    found = np.asarray(RoundedKernel(keras.ops.array(kernel), 32, "float32").apply(eye))
    steps, scale = quantize_blocks(kernel, bits=4, block=32, positive=True)
    stored = (steps.reshape(96, 2, 32) * scale[..., None]).reshape(96, 64).T
    # The emitters search twice as many scales and fit each: nowhere near as good as a step less would be worse.
    assert np.square(found - kernel).sum() < 1.15 * np.square(stored - kernel).sum()
    assert len(np.unique(np.round(found[:32, 0] / np.abs(found[:32, 0])[found[:32, 0] != 0].min()))) <= 16


@pytest.mark.parametrize(
    ("recipe", "spec", "why"),
    [
        ("fp16", random_spec(), "nothing is rounded"),
        ("int4", random_decoder(), "scores tokens"),
        ("int5", random_spec(), "No recipe"),
    ],
)
def test_what_training_cannot_help_is_refused(
    recipe: str, spec: TransformerSpec, why: str, task: Callable[..., Dataset]
) -> None:
    with pytest.raises(RecipeError, match=why):
        distil_spec(spec, dataclasses.replace(spec), task(1, 8, labelled=False), None, training=Training(recipe=recipe))
