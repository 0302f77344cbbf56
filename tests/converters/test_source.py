from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from edgelm_converters.reference import make_reference
from edgelm_converters.source import load_source

from edgelm.errors import ModelError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_CUSTOM_LAYER = """
import keras

class Doubled(keras.layers.Layer):
    def call(self, x):
        return x * 2
"""


def _model() -> Any:
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(20, 4, mask_zero=True)(ids))
    return keras.Model(ids, keras.layers.Dense(3)(pooled), name="tiny")


def test_keras_file_and_object_are_read(tmp_path: Path) -> None:
    model = _model()
    model.save(tmp_path / "m.keras")
    assert load_source(model).name == "tiny"
    source = load_source(tmp_path / "m.keras")
    reference = make_reference(source)
    assert [(port.name, port.dtype, port.role) for port in reference.inputs] == [("token_ids", "int32", "token_ids")]


def test_a_saved_model_is_read_and_runs(tmp_path: Path) -> None:
    import numpy as np

    model = _model()
    model.export(tmp_path / "saved", verbose=False)
    reference = make_reference(load_source(tmp_path / "saved"))
    ids = np.array([[3, 4, 5]], np.int32)
    (port,) = reference.inputs
    (mine,) = reference.run({port.name: ids}).values()
    # The same graph, compiled once more: equal but for the order of float32 sums of 4 terms.
    np.testing.assert_allclose(mine, np.asarray(model(ids)), rtol=1e-5, atol=1e-6)


def test_custom_objects_come_from_the_file_that_the_user_names(tmp_path: Path) -> None:
    code = tmp_path / "mine_layers.py"
    code.write_text(_CUSTOM_LAYER)
    namespace: dict[str, Any] = {"__name__": "mine_layers"}
    exec(_CUSTOM_LAYER, namespace)  # noqa: S102 - the text above
    x = keras.Input((4,))
    keras.Model(x, namespace["Doubled"]()(x)).save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match="uses 'Doubled', which is not part of Keras: name the Python file"):
        load_source(tmp_path / "m.keras")
    assert load_source(tmp_path / "m.keras", custom_objects=code).kind == "keras"


def test_custom_objects_that_do_not_run_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import keras\nkeras.no_such_thing\n")
    _model().save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match="does not run: AttributeError"):
        load_source(tmp_path / "m.keras", custom_objects=tmp_path / "bad.py")
    with pytest.raises(ModelError, match="no Python file"):
        load_source(tmp_path / "m.keras", custom_objects=tmp_path / "none.py")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.keras", b"PK\x03\x04 cut short", "not a whole .keras file"),
        ("m.keras", b"", "not a whole .keras file"),
        ("m.pt", b"", "not a model that edgelm reads"),
        ("m.h5", b"nothing", "not a whole HDF5 file"),
    ],
)
def test_damaged_and_foreign_files_get_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_zip_that_is_no_model_and_a_missing_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_source(tmp_path / "m.keras")
    with pytest.raises(ModelError, match="There is no model"):
        load_source(tmp_path / "none.keras")
    with pytest.raises(ModelError, match="neither a SavedModel"):
        load_source(tmp_path)
    with pytest.raises(ModelError, match=r"must be a keras\.Model or a path; this is a int"):
        load_source(3)


def test_a_truncated_keras_file(tmp_path: Path) -> None:
    _model().save(tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"not a whole .keras file"):
        load_source(tmp_path / "cut.keras")


def test_hdf5_of_keras_2_is_told_the_way_out(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = "{}"
    with pytest.raises(ModelError, match=r"saved by Keras 2\.15\.0: open it where tf_keras"):
        load_source(tmp_path / "old.h5")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.attrs["keras_version"] = "3.0.0"
    with pytest.raises(ModelError, match="holds weights only"):
        load_source(tmp_path / "weights.h5")


def test_a_lambda_is_not_run(tmp_path: Path) -> None:
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Lambda(lambda v: v * 2)(x)).save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match="Lambda layer, which is code"):
        load_source(tmp_path / "m.keras")


def test_a_model_that_takes_text_is_told_to_bring_a_tokenizer() -> None:
    x = keras.Input((), dtype="string", name="text")
    model = keras.Model(x, keras.layers.TextVectorization(vocabulary=["a"])(x))
    with pytest.raises(ModelError, match="is of type string, which no device takes"):
        make_reference(load_source(model))


def test_a_subclassed_model_that_was_never_called_is_told_to_be() -> None:
    class Mine(keras.Model):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(ModelError, match="has never been called"):
        make_reference(load_source(Mine()))
