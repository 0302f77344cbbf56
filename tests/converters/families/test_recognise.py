"""Which reader is asked, and whose reason is given."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from edgelm_converters import families
from edgelm_converters.families import NotRecognised, recognise


def _reader(answer: Any) -> Any:
    def read(model: Any, sequence_length: int | None) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


def _table(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    module = ModuleType("edgelm_tests_readers")
    for name, answer in answers.items():
        setattr(module, name, _reader(answer))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(families, "READERS", tuple((name, f"{module.__name__}:{name}") for name in answers))


def _model(module: str) -> Any:
    return type("Model", (), {"__module__": module})()


def test_the_first_reader_that_takes_a_model_is_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    _table(monkeypatch, bert=NotRecognised("no BERT"), roberta="a spec", plain="another")
    recognition = recognise(_model("user"), None)
    assert (recognition.spec, recognition.family, recognition.reason) == ("a spec", "roberta", None)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("user.models", "no plain model"),
        ("keras_hub.src.models.distil_bert.distil_bert_backbone", "no DistilBERT"),
        ("keras_hub.src.models.gpt2.gpt2_backbone", "no plain model"),
        ("keras_nlp.src.models.bert.bert_backbone", "no BERT"),
    ],
)
def test_the_reason_is_that_of_the_nearest_family(module: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"bert": "no BERT", "distilbert": "no DistilBERT", "plain": "no plain model"}
    _table(monkeypatch, **{name: NotRecognised(text) for name, text in reasons.items()})
    assert recognise(_model(module), None) == families.Recognition(None, None, reason)


def test_other_errors_are_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    _table(monkeypatch, bert=ImportError("broken installation"))
    with pytest.raises(ImportError, match="broken installation"):
        recognise(_model("user"), None)


@pytest.mark.needs_tensorflow
def test_a_model_of_no_family_is_told_what_was_expected() -> None:
    keras = pytest.importorskip("keras")
    recognition = recognise(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), None)
    assert recognition.spec is None
    assert "an Embedding of the token ids was expected" in str(recognition.reason)
