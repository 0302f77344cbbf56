"""A training that is taken up again, and what is refused before one begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.distill import Training, distil
from edgelm_converters.families import recognise
from edgelm_converters.keras_model import build_keras_model
from edgelm_converters.source import load_source
from edgelm_converters.spec import TransformerSpec, parameters

from edgelm.errors import EdgelmError, InputError, ModelError, OutputError, RecipeError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_FAST = Training(epochs=4, batch_size=16, learning_rate=3e-3, seed=3)


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(files: Path, tmp_path: Path) -> None:
    training = dataclasses.replace(_FAST, epochs=2)
    shape = "layers=1,width=8,heads=1,ffn=16"
    common: dict[str, Any] = {"training": training}
    whole = distil(files / "teacher.keras", shape, files / "train.npz", tmp_path / "whole.keras", **common)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 17  # in the second epoch of 12 steps

    output = tmp_path / "resumed.keras"
    with pytest.raises(KeyboardInterrupt):
        distil(files / "teacher.keras", shape, files / "train.npz", output, stop=stop, **common)
    assert not output.exists()
    resumed = distil(files / "teacher.keras", shape, files / "train.npz", output, resume=True, **common)
    assert not output.with_name("resumed.keras.checkpoint").exists()
    assert (resumed.steps, whole.steps) == (24, 24)
    one, other = (recognise(load_source(path).model, None).spec for path in (tmp_path / "whole.keras", output))
    for (name, array), (_, again) in zip(parameters(one), parameters(other), strict=True):
        # Sums of gradients in another order of threads differ in their last bits; Adam divides by their size, so that a step
        # may differ by that share: 24 steps of 3e-3.
        np.testing.assert_allclose(array, again, atol=24 * 3e-3 * 1e-3, err_msg=name)
    np.testing.assert_allclose(whole.losses, resumed.losses, rtol=1e-3)
    record = json.loads((tmp_path / "resumed.json").read_text())
    assert (record["steps"], record["training"]["epochs"]) == (24, 2)


def test_another_training_is_not_resumed(files: Path, tmp_path: Path) -> None:
    def once(**options: Any) -> None:
        training = dataclasses.replace(_FAST, **options.pop("settings", {}))
        distil(
            files / "teacher.keras", "layers=1", files / "train.npz", tmp_path / "s.keras", training=training, **options
        )

    with pytest.raises(InputError, match="no training to resume"):
        once(resume=True)
    with pytest.raises(KeyboardInterrupt):
        once(stop=lambda: True)
    with pytest.raises(InputError, match=r"another training \(learning_rate differs\)"):
        once(resume=True, settings={"learning_rate": 1e-3})
    (tmp_path / "s.keras.checkpoint" / "state.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="damaged"):
        once(resume=True)


def _refused(files: Path, tmp_path: Path, kind: type[EdgelmError], match: str, **options: Any) -> None:
    given: dict[str, Any] = {
        "student": "layers=1",
        "data": files / "train.npz",
        "output": tmp_path / "s.keras",
        **options,
    }
    with pytest.raises(kind, match=match) as error:
        distil(files / "teacher.keras", **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s.keras").exists()


def test_what_does_not_fit_is_refused_in_one_line(
    files: Path, tmp_path: Path, classifier: Callable[..., TransformerSpec]
) -> None:
    other = tmp_path / "other.keras"
    build_keras_model(classifier(vocabulary=48 - 1)).save(other)
    _refused(files, tmp_path, ModelError, "must read the same ids", student=other)
    build_keras_model(classifier(head=((3, "linear"),))).save(other)
    _refused(files, tmp_path, ModelError, "they must answer alike", student=other)
    _refused(files, tmp_path, RecipeError, "No dimension of a student is called 'depth'", student="depth=1")
    _refused(files, tmp_path, RecipeError, "cut out of its teacher, and cannot be larger", student="layers=9")
    _refused(files, tmp_path, RecipeError, "temperature is 0", training=Training(temperature=0.0))
    _refused(files, tmp_path, RecipeError, "nothing says what", training=Training(soft=0, hard=0))
    _refused(files, tmp_path, OutputError, "another suffix", output=tmp_path / "s.h5")
    _refused(files, tmp_path, InputError, "more than teacher and student both take: 16", sequence_length=99)
    text = tmp_path / "text.txt"
    text.write_text("hello\n")
    _refused(files, tmp_path, InputError, "no tokenizer", data=text)
    bad = tmp_path / "bad.npz"
    np.savez(bad, token_ids=np.ones((2, 3), np.int32), labels=np.array([0, 7]))
    _refused(files, tmp_path, InputError, "holds the label 7", data=bad)
