"""What a student learns of its teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from edgelm_converters.data import Dataset
from edgelm_converters.distill import Training, distil_spec
from edgelm_converters.spec import Stack, TransformerSpec

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_FAST = Training(epochs=4, batch_size=16, learning_rate=3e-3, seed=3)


def test_a_student_of_one_layer_beats_the_same_one_trained_without_its_teacher(
    teacher: TransformerSpec, classifier: Callable[..., TransformerSpec], task: Callable[..., Dataset]
) -> None:
    """The same random start and the same 48 steps: a quarter of the samples has labels, and a teacher needs none."""
    start, validation = classifier(layers=1, seed=9), task(2, 256)
    few = Training(epochs=16, batch_size=16, learning_rate=3e-3, seed=3, soft=0.0, hard=1.0)
    found = {}
    for name, data, training in (("taught", task(1, 192, labelled=False), _FAST), ("alone", task(1, 48), few)):
        _, record = distil_spec(teacher, start, data, None, validation=validation, training=training)
        assert record.after is not None
        assert (record.steps, record.after.metric, record.after.samples) == (48, "accuracy", 256)
        assert record.losses[-1] < record.losses[0]
        assert (
            record.after.teacher > 0.8
        )  # chance is 0.25: without a teacher that knows the task this would prove nothing
        found[name] = record.after.student
    assert found["taught"] > found["alone"]


def test_a_damaged_model_recovers_without_labels_and_what_was_pruned_stays_zero(
    teacher: TransformerSpec, task: Callable[..., Dataset]
) -> None:
    """Two of four layers are gone, and half of the weights of a kernel."""
    first, _, _, last = teacher.encoder.layers
    up = first.feed_forward.up
    kernel = up.kernel * (np.arange(len(up.kernel)) % 4 < 2)[:, None].astype(np.float32)
    sparse = dataclasses.replace(first.feed_forward, up=dataclasses.replace(up, kernel=kernel))
    layers = (dataclasses.replace(first, feed_forward=sparse), last)
    damaged = dataclasses.replace(teacher, encoder=Stack(layers, teacher.encoder.final_norm))
    training = dataclasses.replace(_FAST, hidden=1.0, relations=1.0)
    validation = task(2, 256, labelled=False)
    taught, record = distil_spec(
        teacher, damaged, task(1, labelled=False), None, validation=validation, training=training
    )
    assert record.before is not None
    assert record.after is not None
    assert (record.after.metric, record.after.teacher) == ("agreement", 1.0)
    assert record.after.student > record.before.student
    after = taught.encoder.layers[0].feed_forward.up.kernel
    assert not after[kernel == 0].any()
    assert (after != kernel)[kernel != 0].any()
