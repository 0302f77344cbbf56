"""The shipped intent classifier answers as its README says, and padding never changes an answer."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.needs_tensorflow

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
tokenizers = pytest.importorskip("tokenizers")

# The share of these questions that the shipped model answers rightly; the bound is three standard errors of a
# sample of 300 below, so that a fair retraining passes and a broken model or tokenizer does not.
MEASURED = 0.94
FOLDER = Path(__file__).parents[2] / "examples" / "intents"


@pytest.fixture(scope="module")
def model() -> Any:
    """The trained classifier, loaded as a user loads it: after importing its layers."""
    spec = importlib.util.spec_from_file_location("intents_model", FOLDER / "model.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return keras.saving.load_model(FOLDER / "intents.keras")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()


def _rows(count: int) -> list[dict[str, str]]:
    with (FOLDER / "data" / "test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # The file is sorted by intent: a stride visits all 77 instead of the first few.
    return rows[:: len(rows) // count][:count]


def _pad(rows: list[list[int]], length: int) -> Any:
    return np.asarray([row + [0] * (length - len(row)) for row in rows], np.int32)


def _answer(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return np.asarray(model(_pad(rows, max(map(len, rows)))))


def test_takes_token_ids_of_any_length_and_returns_one_logit_per_intent(model: Any, labels: list[str]) -> None:
    assert model.input_shape == (None, None)
    assert model.input.name == "token_ids"
    assert model.output_shape == (None, 77)
    assert len(set(labels)) == 77


def test_padding_does_not_change_the_logits(model: Any, tokenizer: Any) -> None:
    rows = [tokenizer.encode(row["text"]).ids for row in _rows(20)]
    alone = np.concatenate([np.asarray(model(np.asarray([ids], np.int32))) for ids in rows])
    padded = np.asarray(model(_pad(rows, 128)))
    # Padding adds exact zeros to the sums, so only their order changes: float32 rounding, 2**-24 a term, over the
    # 128 terms of the pooling at the worst, times the size of the logits.
    assert np.abs(padded - alone).max() <= 128 * 2**-24 * max(1.0, float(np.abs(alone).max()))


def test_accuracy_on_test_questions_from_every_intent(model: Any, tokenizer: Any, labels: list[str]) -> None:
    rows = _rows(300)
    answers = _answer(model, tokenizer, [row["text"] for row in rows]).argmax(-1)
    right = np.mean([labels[answer] == row["category"] for answer, row in zip(answers, rows, strict=True)])
    assert right >= MEASURED - 3 * (MEASURED * (1 - MEASURED) / 300) ** 0.5


def test_training_record_matches_the_files(labels: list[str]) -> None:
    record = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    assert record["classes"] == len(labels)
    assert record["keras_bytes"] == (FOLDER / "intents.keras").stat().st_size


def test_questions_are_test_questions_and_are_answered_rightly(model: Any, tokenizer: Any, labels: list[str]) -> None:
    truth = {row["text"].strip(): row["category"] for row in _rows(3080)}
    questions = (FOLDER / "questions.txt").read_text(encoding="utf-8").splitlines()
    answers = [labels[answer] for answer in _answer(model, tokenizer, questions).argmax(-1)]
    assert answers == [truth[question] for question in questions]
    assert len(set(answers)) == len(questions) == 3


def test_tokenizer_cuts_at_128_and_never_pads(tokenizer: Any) -> None:
    short, long = tokenizer.encode_batch(["Where is my card?", "card " * 500])
    assert len(short.ids) < 10
    assert len(long.ids) == 128
    assert tokenizer.token_to_id("[PAD]") == 0
    assert 0 not in short.ids
    assert tokenizer.encode("WHERE is my card?").ids == short.ids


def test_empty_text_gets_finite_logits(model: Any, tokenizer: Any) -> None:
    # Beside another text: Keras warns of a softmax over one token, which is right here.
    assert np.isfinite(_answer(model, tokenizer, ["", "Where is my card?"])).all()
