"""Every kind of model that teaches or is taught: language models, embedders, and teachers that no reader takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from edgelm_converters.data import Dataset
from edgelm_converters.distill import Training, distil, distil_spec
from edgelm_converters.distill.student import Shape, cut_student
from edgelm_converters.families import recognise
from edgelm_converters.keras_model import build_keras_model, carried_tokenizer
from edgelm_converters.source import load_source
from edgelm_converters.spec import TransformerSpec
from spec_factory import random_decoder
from tokenizers import Tokenizer, models, pre_tokenizers

from edgelm.errors import RecipeError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

_FAST = Training(epochs=4, batch_size=16, learning_rate=3e-3, seed=3)


def _story_tokenizer() -> Tokenizer:
    words = {word: number for number, word in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_a_language_model_is_taught_next_tokens_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    """The text counts through the alphabet: perplexity falls as soon as something is learned."""
    spec = random_decoder(vocabulary=27, layers=2, width=16, feed_forward=24, max_length=32, tied=True)
    tokenizer = _story_tokenizer()
    build_keras_model(spec, tokenizer=tokenizer.to_str()).save(tmp_path / "teacher.keras")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(chr(97 + (start + step) % 26) for step in range(40)) for start in range(30)))
    training = Training(epochs=3, batch_size=8, learning_rate=1e-2, soft=0.2, hard=1.0, relations=0.1)
    output = tmp_path / "student.keras"
    record = distil(
        tmp_path / "teacher.keras", "layers=1,heads=2,ffn=16", text, output,
        validation=text, training=training, sequence_length=16,
    )  # fmt: skip
    assert record.samples == 30 * 40 // 16
    assert record.before is not None
    assert record.after is not None
    assert record.after.metric == "perplexity"
    assert record.after.student < record.before.student
    source = load_source(output)
    student = recognise(source.model, None).spec
    assert student is not None
    assert student.head.tokens is not None
    assert student.head.tokens.table is student.embeddings.token  # it was tied, and is
    assert carried_tokenizer(source.model) == tokenizer.to_str()


def test_a_narrower_embedder_answers_with_vectors_as_wide_as_its_teachers(
    classifier: Callable[..., TransformerSpec], task: Callable[..., Dataset]
) -> None:
    spec = classifier(head=(), output="embedding")
    data = task(1, 128, labelled=False)
    student = cut_student(spec, Shape(layers=1, width=8))
    _, record = distil_spec(spec, student, data, None, validation=data, training=_FAST)
    assert record.before is not None
    assert record.after is not None
    assert record.after.metric == "cosine"
    assert record.after.teacher == pytest.approx(1.0, abs=1e-5)
    assert record.after.student > record.before.student


def test_a_teacher_that_no_reader_takes_teaches_by_its_answers(
    files: Path, tmp_path: Path, classifier: Callable[..., TransformerSpec]
) -> None:
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(48, 8)(ids)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.GRU(8, return_sequences=True)(x))
    teacher = keras.Model(ids, keras.layers.Dense(4, activation="softmax")(x))
    with pytest.raises(RecipeError, match="cut out of a teacher that is not recognised"):
        distil(teacher, "layers=1", files / "train.npz", tmp_path / "s.keras")
    build_keras_model(classifier(layers=1)).save(tmp_path / "small.keras")
    record = distil(teacher, tmp_path / "small.keras", files / "train.npz", tmp_path / "s.keras", training=_FAST)
    assert record.teacher_parameters is None
    assert record.losses[-1] < record.losses[0]
    watched = dataclasses.replace(_FAST, hidden=1.0)
    with pytest.raises(RecipeError, match="only its answers can be taught"):
        distil(teacher, tmp_path / "small.keras", files / "train.npz", tmp_path / "t.keras", training=watched)
