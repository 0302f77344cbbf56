"""Encoder-decoders from Keras to a bundle that a session opens: what stands in it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_runtimes import load, verify
from tokenizers import Tokenizer, models, pre_tokenizers

import edgelm
from edgelm.errors import EdgelmError, InputError, ModelError, RecipeError, TokenizerError

keras = pytest.importorskip("keras")
pytest.importorskip("keras_hub")
pytestmark = pytest.mark.needs_tensorflow

from seq2seq_models import LENGTH, TARGET, make_hub  # noqa: E402 - Keras is imported by it
from spec_factory import random_seq2seq  # noqa: E402

_BEGIN, _END = "<s>", "</s>"


def _tokenizer(path: Path, special: tuple[str, ...], size: int = TARGET) -> Path:
    words = [*special, *(f"w{number}" for number in range(size - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def bart() -> Any:
    return make_hub("Bart")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bart: Any) -> Path:
    """A folder with ``bart.edgelm`` in int8, its tokenizer and pairs."""
    folder = tmp_path_factory.mktemp("translation")
    _tokenizer(folder / "tokenizer.json", (_BEGIN, "<pad>", _END))
    rows = "".join(f"w{number} w{number + 1},w{2 * number} w3 w4\n" for number in range(20))
    (folder / "pairs.csv").write_text(f"source,target\n{rows}")
    edgelm.convert(
        bart, folder / "bart.edgelm", tokenizer=folder / "tokenizer.json", validation=folder / "pairs.csv",
        metric="perplexity", max_drop=0.5,
    )  # fmt: skip
    return folder


def _greedy(model: Any, source: list[int], start: list[int], end: int, limit: int) -> list[int]:
    """Return the likeliest tokens, with Keras computing everything anew for each."""
    ids = list(start)
    while len(ids) < limit:
        inputs = {
            "encoder_token_ids": np.array([source]), "encoder_padding_mask": np.ones((1, len(source)), "int32"),
            "decoder_token_ids": np.array([ids]), "decoder_padding_mask": np.ones((1, len(ids)), "int32"),
        }  # fmt: skip
        hidden = model(inputs)["decoder_sequence_output"]
        found = int(np.asarray(model.token_embedding(hidden, reverse=True))[0, -1].argmax())
        if found == end:
            break
        ids.append(found)
    return ids[len(start) :]


@pytest.mark.parametrize("runtime", ["litert", "onnx"])
def test_a_session_answers_what_keras_answers(folder: Path, bart: Any, runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "bart.edgelm"
    target = {"litert": "tflite", "onnx": "onnx"}[runtime]
    edgelm.convert(bart, path, to=[target], recipe="fp32", tokenizer=folder / "tokenizer.json")
    with load(path, runtime=runtime) as session:
        for text, ids in (("w1 w2 w3", [4, 5, 6]), ("w40", [43])):
            wanted = _greedy(bart, [0, *ids, 2], [2, 0], 2, LENGTH)
            assert list(session.translate(text, max_new_tokens=LENGTH - 2).ids) == wanted[: LENGTH - 2]


def test_the_manifest_says_how_it_is_driven_and_a_device_checks_itself(folder: Path) -> None:
    with load(folder / "bart.edgelm") as session:
        manifest = session.manifest
    record = manifest.translation
    assert record is not None
    assert (manifest.task, record.source_prefix, record.source_suffix) == ("translate", (0,), (2,))
    assert (record.target_prefix, record.stop_ids, record.source_length) == ((2, 0), (2,), LENGTH)
    for artifact in manifest.artifacts:
        assert artifact.gate is not None
        assert artifact.perplexity is not None
        assert artifact.gate.value == artifact.perplexity.artifact
    report = verify(folder / "bart.edgelm")
    assert report.passed
    assert {check.runtime: check.status for check in report.runtimes} == {"litert": "passed", "onnx": "passed"}
    assert report.tokenizer is not None
    assert report.tokenizer.passed


def test_a_model_that_hears_transcribes(tmp_path: Path) -> None:
    words = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    model = make_hub("Whisper", max_encoder_sequence_length=200, num_mels=20)
    tokenizer = _tokenizer(tmp_path / "tokenizer.json", words)
    result = edgelm.convert(model, tmp_path / "a.edgelm", to=["tflite"], recipe="fp32", tokenizer=tokenizer)
    record = result.manifest.translation
    assert record is not None
    assert record.audio is not None
    assert (record.target_prefix, record.stop_ids, record.audio.seconds) == ((1, 2, 3, 4), (0,), 2)
    with load(tmp_path / "a.edgelm") as session:
        sound = np.sin(np.arange(16_000) / 9).astype(np.float32)
        assert session.transcribe(sound, max_new_tokens=3).finish_reason in ("length", "stop_token")
        with pytest.raises(InputError, match="hears"):
            session.translate("w1")


def test_bleu_is_measured_in_the_runtime(folder: Path, bart: Any, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    result = edgelm.convert(
        bart, tmp_path / "a.edgelm", to=["tflite"], tokenizer=folder / "tokenizer.json", validation=folder / "pairs.csv",
        metric="bleu", max_drop=100.0,
    )  # fmt: skip
    gate = result.manifest.artifacts[0].gate
    assert gate is not None
    assert (gate.metric, gate.data) == ("bleu", "pairs.csv")
    assert 0.0 <= gate.value <= 100.0


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"recipe": "full-int8"}, RecipeError, "has calibrated ranges, which edgelm has for encoders alone"),
        ({"prune": "heads=0.5"}, RecipeError, "has an encoder and a decoder"),
        ({"labels": ["a", "b"]}, InputError, "it has no classes"),
        ({"to": ["litertlm"]}, RecipeError, "not as litertlm"),
        ({"sequence_length": 999}, ModelError, f"has {LENGTH} positions and cannot take 999"),
        ({"metric": "accuracy", "max_drop": 0.1}, RecipeError, "not of a model that writes text"),
        ({"metric": "bleu", "max_drop": 0.1}, RecipeError, "needs sources and their translations"),
    ],
)
def test_what_is_not_for_an_encoder_decoder_is_refused_and_nothing_is_written(
    folder: Path, bart: Any, tmp_path: Path, options: dict[str, Any], error: type[EdgelmError], why: str
) -> None:
    given = {"to": ["tflite"], "tokenizer": folder / "tokenizer.json", **options}
    with pytest.raises(error, match=why):
        edgelm.convert(bart, tmp_path / "a.edgelm", **given)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_does_not_say_where_an_answer_begins_is_refused(tmp_path: Path) -> None:
    model = make_hub("Whisper", max_encoder_sequence_length=200, num_mels=20)
    with pytest.raises(TokenizerError, match="give its tokenizer with --tokenizer"):
        edgelm.convert(model, tmp_path / "a.edgelm", to=["tflite"])


def test_what_makes_models_of_one_stack_smaller_refuses_two() -> None:
    from edgelm_converters.compress.pruning import Pruning, prune
    from edgelm_converters.compress.vocabulary import trim_vocabulary
    from edgelm_converters.keras_model import build_keras_model

    spec = random_seq2seq(layers=1, encoder_layers=1)
    with pytest.raises(ModelError, match="models of one stack"):
        build_keras_model(spec)
    with pytest.raises(RecipeError, match="an encoder and a decoder"):
        prune(spec, Pruning.parse("heads=0.5"), None, lambda step, done, total: None, pad_id=0)
    with pytest.raises(RecipeError, match="a vocabulary for its source"):
        trim_vocabulary(spec, Tokenizer(models.WordLevel({"a": 0})), ["a"])
