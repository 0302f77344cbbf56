"""From a Keras model to a bundle that a device opens, and every way in which nothing is written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters import convert, run_artifact
from edgelm_runtimes import load, verify

from edgelm.bundle import open_bundle
from edgelm.errors import ConversionError, InputError, OutputError, ParityError, RecipeError, TokenizerError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

WORDS = ("card", "lost", "money", "transfer", "late", "pin", "cash", "where", "is", "my")
LABELS = ("lost", "late", "other")


def small_classifier(*, masked: bool = True, length: int | None = None, seed: int = 5) -> Any:
    """A one-block encoder of plain layers over the words above; ids 0 and 1 are padding and unknown."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    ids = keras.Input((length,), dtype="int32", name="token_ids")
    x = layers.Embedding(len(WORDS) + 2, 32, mask_zero=masked)(ids)
    # `layers.Add` hands the mask on, where a plain `+` of a functional model drops it.
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)]))
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(32)(layers.Dense(64, activation="gelu")(x))]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, layers.Dense(3)(x), name="small")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: index + 2 for index, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(32)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(LABELS))
    return path


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("data") / "validation.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for index in range(60):
            writer.writerow((" ".join(generator.choice(WORDS, 1 + index % 30)), LABELS[index % 3]))
    return path


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8"])
def test_a_recognised_model_becomes_a_bundle_that_verifies_in_both_runtimes(
    tmp_path: Path, tokenizer: Path, labels: Path, validation: Path, recipe: str
) -> None:
    steps: list[str] = []
    result = convert(
        small_classifier(), tmp_path / "small.edgelm", recipe=recipe, tokenizer=tokenizer, labels=labels,
        validation=validation, progress=lambda step, done, total: steps.append(step),
    )  # fmt: skip
    manifest = result.manifest
    assert (manifest.model.path, manifest.model.family, manifest.padding) == ("recognised", "plain", "masked")
    assert manifest.labels == LABELS
    for artifact in manifest.artifacts:
        assert artifact.parity.inputs == "real"
        assert artifact.parity.max_abs_error <= artifact.parity.bound
        assert artifact.accuracy is not None
        assert artifact.accuracy.samples == 60
    assert [s.sequence_length for s in manifest.artifacts[0].signatures] == [16, 32]
    assert manifest.artifacts[1].signatures[0].sequence_length is None
    assert {"Reading the model", "Asking Keras", "Checking tflite against Keras"} <= set(steps)
    report = verify(result.path)
    assert report.passed
    assert {check.runtime: check.status for check in report.runtimes if check.status != "skipped"} == {
        "litert": "passed",
        "onnx": "passed",
    }


def test_the_session_gives_keras_own_answer(tmp_path: Path, tokenizer: Path, labels: Path) -> None:
    model = small_classifier()
    result = convert(model, tmp_path / "m.edgelm", recipe="fp32", tokenizer=tokenizer, labels=labels)
    ids = np.array([[2, 3, 11]], np.int32)
    expected = np.asarray(keras.ops.softmax(model(ids)))[0]
    for runtime in ("litert", "onnx"):
        with load(result.path, runtime=runtime) as session:
            answer = session.classify("card lost my", top=3)
            scores = dict(answer.ranking)
            assert answer.label == LABELS[int(expected.argmax())]
            # float32 rounding of one block, softmax included.
            np.testing.assert_allclose([scores[label] for label in LABELS], expected, atol=1e-6)


def test_a_path_and_an_object_give_the_same(tmp_path: Path) -> None:
    model = small_classifier()
    model.save(tmp_path / "m.keras")
    one = convert(model, tmp_path / "a.edgelm", to="onnx", recipe="fp32")
    other = convert(str(tmp_path / "m.keras"), str(tmp_path / "b.edgelm"), to=["onnx"], recipe="fp32")
    assert one.manifest.files["model.onnx"] == other.manifest.files["model.onnx"]
    assert other.manifest.model.source == "m.keras"
    assert one.manifest.artifacts[0].parity.inputs == "random"


def test_int8_is_a_quarter_of_the_weights(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(5000, 256, mask_zero=True)(ids)
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, keras.layers.MultiHeadAttention(4, 64)(x, x)]))
    inner = keras.layers.Dense(256)(keras.layers.Dense(1024, activation="relu")(x))
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, inner]))
    model = keras.Model(ids, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x)))
    sizes = {
        recipe: [a.size_bytes for a in convert(model, tmp_path / f"{recipe}.edgelm", recipe=recipe).manifest.artifacts]
        for recipe in ("fp32", "int8")
    }
    for full, small in zip(sizes["fp32"], sizes["int8"], strict=True):
        assert small <= full / 4 * 1.05


def test_the_published_text_classification_example_converts(tmp_path: Path) -> None:
    """TransformerBlock and TokenAndPositionEmbedding, which TensorFlow's converter fails on (tensorflow issue 48449)."""
    layers, ops = keras.layers, keras.ops

    class TransformerBlock(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, width: int, heads: int, inner: int) -> None:
            super().__init__()
            self.att = layers.MultiHeadAttention(num_heads=heads, key_dim=width)
            self.ffn = keras.Sequential([layers.Dense(inner, activation="relu"), layers.Dense(width)])
            self.norm1, self.norm2 = layers.LayerNormalization(epsilon=1e-6), layers.LayerNormalization(epsilon=1e-6)
            self.drop1, self.drop2 = layers.Dropout(0.1), layers.Dropout(0.1)

        def call(self, inputs: Any) -> Any:
            out = self.norm1(inputs + self.drop1(self.att(inputs, inputs)))
            return self.norm2(out + self.drop2(self.ffn(out)))

    class TokenAndPositionEmbedding(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, length: int, vocabulary: int, width: int) -> None:
            super().__init__()
            self.token_emb = layers.Embedding(input_dim=vocabulary, output_dim=width)
            self.pos_emb = layers.Embedding(input_dim=length, output_dim=width)

        def call(self, x: Any) -> Any:
            return self.token_emb(x) + self.pos_emb(ops.arange(start=0, stop=ops.shape(x)[-1], step=1))

    keras.utils.set_random_seed(4)
    inputs = layers.Input(shape=(40,))
    x = TransformerBlock(32, 2, 32)(TokenAndPositionEmbedding(40, 200, 32)(inputs))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    manifest = convert(model, tmp_path / "imdb.edgelm", recipe="int8").manifest
    assert manifest.model.family == "plain"
    # It has no mask: padding changes its answer, so it has its one length, and the manifest says so.
    assert manifest.padding == "full"
    assert [s.sequence_length for s in manifest.artifacts[0].signatures] == [40]
    assert any("sees its padding" in note for note in manifest.notes)
    assert manifest.artifacts[0].signatures[0].inputs[0].name == "token_ids"
    assert manifest.artifacts[0].signatures[0].outputs[0].role == "probabilities"
    assert verify(tmp_path / "imdb.edgelm").passed


def test_another_keras_model_is_traced_and_says_why(tmp_path: Path) -> None:
    x = keras.Input((6,), name="features")
    model = keras.Model(x, keras.layers.Dense(2, activation="softmax")(keras.layers.Dense(8, activation="relu")(x)))
    result = convert(model, tmp_path / "mlp.edgelm", recipe="fp32", labels=["no", "yes"])
    assert result.manifest.model.path == "traced"
    assert result.manifest.model.reason
    assert verify(result.path).passed
    values = np.random.default_rng(0).standard_normal((1, 6)).astype(np.float32)
    with load(result.path, runtime="onnx") as session:
        (output,) = session.run({"features": values}).values()
    np.testing.assert_allclose(output, np.asarray(model(values)), atol=1e-6)


def test_a_saved_model_is_traced(tmp_path: Path) -> None:
    model = small_classifier(length=12)
    model.export(tmp_path / "saved", verbose=False)
    result = convert(tmp_path / "saved", tmp_path / "m.edgelm", recipe="int8")
    assert result.manifest.model.path == "traced"
    assert "SavedModel" in (result.manifest.model.reason or "")
    assert any("vocabulary is not known" in note for note in result.manifest.notes)
    assert verify(result.path).passed


def test_tflite_runtime_is_refused_for_int8_in_the_manifest(tmp_path: Path) -> None:
    """It computes int8 weights with a scale per channel wrongly, and says nothing."""
    manifest = convert(small_classifier(), tmp_path / "m.edgelm", to="tflite", recipe="int8").manifest
    records = {record.runtime: record for record in manifest.artifacts[0].runtimes}
    assert records["tflite"].status == "refused"
    assert "wrongly" in (records["tflite"].reason or "")
    assert records["litert"].status == "verified"


# ------------------------------------------------------------------------------------------------ nothing is written


def _assert_nothing_written(folder: Path) -> None:
    assert [path for path in folder.iterdir() if "edgelm" in path.name] == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recipe": "int9"}, RecipeError, "No recipe is called 'int9'. Did you mean 'int8'"),
        ({"to": "tflit"}, RecipeError, "No target is called 'tflit'. Did you mean 'tflite'"),
        ({"to": []}, RecipeError, "No target was named"),
        ({"labels": ["a", "b"]}, InputError, "There are 2 labels, and the model has 3 classes"),
        ({"tokenizer": "none.json"}, TokenizerError, "cannot be read"),
        ({"calibration": "none.csv"}, InputError, "cannot be read"),
    ],
)
def test_arguments_that_do_not_fit_are_told_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        convert(small_classifier(), tmp_path / "m.edgelm", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    _assert_nothing_written(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    large = Tokenizer(models.WordLevel({f"w{index}": index for index in range(500)}, unk_token="w0"))
    with pytest.raises(TokenizerError, match="500"):
        convert(small_classifier(), tmp_path / "m.edgelm", tokenizer=large)
    _assert_nothing_written(tmp_path)


def test_texts_without_a_tokenizer_and_labels_that_are_unknown(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\ncard,lost\ncard,stolen\n")
    (tmp_path / "d.txt").write_text("card\n")
    with pytest.raises(InputError, match="there is no tokenizer to turn them into ids"):
        convert(small_classifier(), tmp_path / "m.edgelm", calibration=tmp_path / "d.txt")
    with pytest.raises(InputError, match="holds the label 'stolen', which is not among the 3 labels"):
        convert(
            small_classifier(), tmp_path / "m.edgelm", tokenizer=tokenizer, labels=LABELS, validation=tmp_path / "d.csv"
        )
    _assert_nothing_written(tmp_path)


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\ncard,7\n")
    with pytest.raises(InputError, match="hold the label 7, and the model has the classes 0 to 2"):
        convert(small_classifier(), tmp_path / "m.edgelm", tokenizer=tokenizer, validation=tmp_path / "d.csv")
    _assert_nothing_written(tmp_path)


def test_a_tagger_gives_a_row_for_each_token(tmp_path: Path) -> None:
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(20, 16, mask_zero=True)(ids)
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 8)(x, x)]))
    inner = keras.layers.Dense(16)(keras.layers.Dense(32, activation="relu")(x))
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, inner]))
    model = keras.Model(ids, keras.layers.Dense(4)(x))
    result = convert(model, tmp_path / "tags.edgelm", recipe="fp32")
    assert (result.manifest.task, result.manifest.model.family) == ("raw", "plain")
    values = np.array([[3, 4, 5, 6, 7]], np.int32)
    for runtime in ("litert", "onnx"):
        with load(result.path, runtime=runtime) as session:
            (output,) = session.run({"token_ids": values}).values()
        # float32 rounding of one block.
        np.testing.assert_allclose(output, np.asarray(model(values)), atol=1e-5)


def test_a_sample_without_a_token_is_named(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "d.csv").write_text('text\ncard\n"  "\n')
    with pytest.raises(InputError, match=r"d\.csv: sample 2 gives no tokens"):
        convert(small_classifier(), tmp_path / "m.edgelm", tokenizer=tokenizer, calibration=tmp_path / "d.csv")
    _assert_nothing_written(tmp_path)


def test_an_output_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    convert(small_classifier(), tmp_path / "m.edgelm", to="onnx")
    before = (tmp_path / "m.edgelm" / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        convert(small_classifier(), tmp_path / "m.edgelm", to="onnx")
    assert (tmp_path / "m.edgelm" / "manifest.json").read_bytes() == before
    convert(small_classifier(), tmp_path / "m.edgelm", to="onnx", recipe="fp32", force=True)
    with open_bundle(tmp_path / "m.edgelm") as bundle:
        assert bundle.manifest.recipe == "fp32"


def _emit_then(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the emitter of ONNX do its work, then `change` the file."""
    from edgelm_converters.emit import onnx as emitter

    emit = emitter.emit_onnx

    def changed(spec: Any, path: Path, *, recipe: str) -> Any:
        signatures = emit(spec, path, recipe=recipe)
        change(path)
        return signatures

    monkeypatch.setattr(emitter, "emit_onnx", changed)


def _edit_onnx(path: Path, edit: Any) -> None:
    import onnx

    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))


def test_an_operator_that_does_not_exist_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tf2onnx's `Erfc`: the file is written, and no runtime loads it."""

    def rename(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "Add").op_type = "Addd"

    _emit_then(monkeypatch, lambda path: _edit_onnx(path, rename))
    with pytest.raises(ConversionError, match="onnx does not open it"):
        convert(small_classifier(), tmp_path / "m.edgelm", to="onnx", recipe="fp32")
    _assert_nothing_written(tmp_path)


def test_a_file_that_loads_and_fails_when_it_runs_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_shape(model: Any) -> None:
        from onnx import numpy_helper

        shape = next(t for t in model.graph.initializer if t.data_type == 7 and len(t.dims) == 1 and t.dims[0] >= 2)
        shape.CopyFrom(numpy_helper.from_array(np.full(shape.dims, 7, np.int64), shape.name))

    _emit_then(monkeypatch, lambda path: _edit_onnx(path, break_shape))
    with pytest.raises(ConversionError):
        convert(small_classifier(), tmp_path / "m.edgelm", to="onnx", recipe="fp32")
    _assert_nothing_written(tmp_path)


def test_wrong_numbers_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever makes them: a kernel, a converter, a bit on the disk."""

    def shift(model: Any) -> None:
        from onnx import numpy_helper

        tensor = next(t for t in model.graph.initializer if list(t.dims) == [32, 64])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name))

    _emit_then(monkeypatch, lambda path: _edit_onnx(path, shift))
    with pytest.raises(ParityError, match=r"onnx \(fp32\) is off by up to .* Nothing was written"):
        convert(small_classifier(), tmp_path / "m.edgelm", to="onnx", recipe="fp32")
    _assert_nothing_written(tmp_path)


def test_interrupting_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_artifact, "compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(small_classifier(), tmp_path / "m.edgelm", to="onnx")
    _assert_nothing_written(tmp_path)


def test_a_model_of_nan_weights_is_told(tmp_path: Path) -> None:
    model = small_classifier()
    model.layers[-1].kernel.assign(np.full((32, 3), np.nan))
    with pytest.raises(ConversionError, match="NaN or infinity"):
        convert(model, tmp_path / "m.edgelm")
    _assert_nothing_written(tmp_path)


def test_a_keras_hub_task_brings_its_tokenizer_by_object_file_and_preset(tmp_path: Path) -> None:
    keras_hub = pytest.importorskip("keras_hub")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *WORDS, "?"]
    keras.utils.set_random_seed(1)
    models = keras_hub.models
    preprocessor = models.BertTextClassifierPreprocessor(
        models.BertTokenizer(vocabulary, lowercase=True), sequence_length=24
    )
    backbone = models.BertBackbone(
        vocabulary_size=len(vocabulary), num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=64,
        max_sequence_length=32,
    )  # fmt: skip
    model = models.BertTextClassifier(backbone, num_classes=3, preprocessor=preprocessor)
    model.save(tmp_path / "bert.keras")
    model.save_to_preset(str(tmp_path / "preset"))
    text = "Where is my LOST card?"
    expected = np.asarray(keras.ops.softmax(model.predict([text], verbose=0)))[0]
    for index, source in enumerate((model, tmp_path / "bert.keras", tmp_path / "preset")):
        result = convert(source, tmp_path / f"{index}.edgelm", recipe="fp32", labels=LABELS)
        assert result.manifest.model.family == "bert"
        assert result.manifest.tokenizer is not None
        assert result.manifest.tokenizer.max_length == 24
        with load(result.path, runtime="litert") as session:
            scores = dict(session.classify(text, top=3).ranking)
        # float32 rounding of two layers.
        np.testing.assert_allclose([scores[label] for label in LABELS], expected, atol=1e-6)
    # A backbone is an embedding model, which takes ids; a file in front of its position table is never asked for more.
    backbone_bundle = convert(backbone, tmp_path / "backbone.edgelm", recipe="int8")
    assert backbone_bundle.manifest.task == "embed"
    assert backbone_bundle.manifest.artifacts[0].signatures[-1].sequence_length == 32
