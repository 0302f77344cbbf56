"""Models with a trimmed vocabulary against the whole ones, as the oracle computes both; and the shipped stories model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edgelm_converters.compress.vocabulary import Trimmed, trim_vocabulary
from edgelm_converters.generation import generation_record
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec, parameters
from edgelm_converters.tokens import Tokens
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_inputs, random_spec
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = 60
# KerasHub leaves vocabulary.spm open when it reads it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEPT = (0, 1, 3, 4, 7, 20, 21, 22, 40, 58)
STORIES = Path(__file__).parents[3] / "examples" / "stories"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red "
    "ball and wanted to play with it. Her friend Tom was sad, so she gave him the ball. They played together and were happy."
)


def words() -> Tokenizer:
    result = Tokenizer(
        models.WordLevel(
            {"": 0, "[UNK]": 1, **{f"w{index}": index for index in range(2, VOCABULARY)}}, unk_token="[UNK]"
        )
    )
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return result


def trim(spec: TransformerSpec, **settings: Any) -> Trimmed:
    return trim_vocabulary(spec, words(), [" ".join(f"w{index}" for index in KEPT[2:])], **settings)


def renumbered(inputs: dict[str, NDArray[np.int32]], spec: TransformerSpec, trimmed: Trimmed) -> Any:
    """Return inputs of kept tokens alone, and the same with the new ids."""
    ids = inputs[spec.token_input]
    old = np.where(ids == 0, 0, np.asarray(KEPT)[ids % len(KEPT)]).astype(np.int32)
    new = np.vectorize(trimmed.ids.__getitem__, otypes=[np.int32])(old)
    return {**inputs, spec.token_input: old}, {**inputs, spec.token_input: new}


# --- The same rows, the same answers ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_bias": True},
        {"tied": False, "head_bias": True, "head_soft_cap": 5.0},
        {"positions": 64, "token_scale": 4.0},
        {"norm": "layer", "biases": True, "gated": False, "activation": "gelu", "windows": (None, 4)},
    ],
    ids=str,
)
def test_kept_tokens_have_the_scores_that_they_had(options: dict[str, Any]) -> None:
    spec = random_decoder(vocabulary=VOCABULARY, **options)
    trimmed = trim(spec)
    old, new = renumbered(random_inputs(spec, 9), spec, trimmed)
    expected = forward(spec, old)[..., list(trimmed.ids)]
    found = forward(trimmed.spec, new)
    assert list(trimmed.ids) == list(KEPT)
    # The same float64 products of 32 terms, of size 1; BLAS may add them in another order where a matrix is smaller.
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=32 * 32 * np.finfo(np.float64).eps * np.abs(expected).max()
    )


@pytest.mark.parametrize("mask", ["input", "nonzero", "none"])
@pytest.mark.parametrize("options", [{}, {"segments": 2, "embedding_width": 8}], ids=str)
def test_an_encoder_answers_as_before_padding_included(mask: str, options: dict[str, Any]) -> None:
    spec = random_spec(vocabulary=VOCABULARY, mask=mask, **options)
    trimmed = trim(spec)
    old, new = renumbered(random_inputs(spec, 9, real=6), spec, trimmed)
    # Rows of an embedding are looked up, not computed with: nothing is rounded otherwise.
    np.testing.assert_array_equal(forward(trimmed.spec, new), forward(spec, old))
    assert trimmed.spec.vocabulary_size == len(KEPT)


def test_a_tied_table_stays_one_and_the_rest_is_not_copied() -> None:
    spec = random_decoder(vocabulary=VOCABULARY)
    trimmed = trim(spec).spec
    assert trimmed.head.tokens is not None
    assert trimmed.head.tokens.table is trimmed.embeddings.token
    rest = {path: array for path, array in parameters(spec) if path != "embeddings.token"}
    assert all(array is rest[path] for path, array in parameters(trimmed) if path != "embeddings.token")


def test_an_untied_table_stays_apart() -> None:
    trimmed = trim(random_decoder(vocabulary=VOCABULARY, tied=False)).spec
    assert trimmed.head.tokens is not None
    assert trimmed.head.tokens.table is not trimmed.embeddings.token


def test_bits_that_a_piece_needs_stay_with_it() -> None:
    spec = random_decoder(vocabulary=VOCABULARY)
    assert spec.head.tokens is not None
    spec = dataclasses.replace(
        spec,
        embeddings=dataclasses.replace(spec.embeddings, least_bits=16),
        head=dataclasses.replace(spec.head, tokens=dataclasses.replace(spec.head.tokens, least_bits=16)),
    )
    trimmed = trim(spec).spec
    assert trimmed.head.tokens is not None
    assert (trimmed.embeddings.least_bits, trimmed.head.tokens.least_bits) == (16, 16)


def test_the_step_says_what_went() -> None:
    spec = random_decoder(vocabulary=VOCABULARY, head_bias=True)
    step = trim(spec).step
    gone = VOCABULARY - len(KEPT)
    assert step.step == "trim-vocabulary"
    assert step.settings == {"texts": 1}
    assert step.parameters_before - step.parameters_after == gone * (spec.width + 1)
    assert step.notes[0].startswith("Of 60 tokens 10 stayed: 8 that the corpus takes, 2 ")
    assert step.notes[1] == "1 of 1 texts of the corpus have the same tokens."


def test_what_a_limit_costs_the_corpus_is_said() -> None:
    step = trim(random_decoder(vocabulary=VOCABULARY), limit=6).step
    assert step.settings == {"texts": 1, "limit": 6}
    assert step.parameters_after == step.parameters_before - 54 * 32
    assert step.notes[1] == (
        "0 of 1 texts of the corpus have the same tokens; all together have +0.00% tokens, "
        "and 4 words became the unknown token."
    )


# --- The shipped stories model ---


@pytest.fixture(scope="module")
def stories() -> tuple[TransformerSpec, Tokenizer]:
    from edgelm_converters.families import recognise
    from edgelm_converters.source import load_source

    source = load_source(STORIES / "stories.keras")
    spec = recognise(source.model, None).spec
    assert spec is not None
    return spec, Tokenizer.from_file(str(STORIES / "tokenizer.json"))


def told(spec: TransformerSpec, ids: list[int], tokens: int) -> list[int]:
    """Return the likeliest tokens, one after the other."""
    ids = list(ids)
    for _ in range(tokens):
        scores = forward(spec, {spec.token_input: np.asarray([ids], np.int32)})
        ids.append(int(scores[0, -1].argmax()))
    return ids


@pytest.mark.needs_tensorflow
def test_stories_are_told_in_the_same_words(stories: tuple[TransformerSpec, Tokenizer]) -> None:
    spec, tokenizer = stories
    begin = tokenizer.encode("Once upon a time, there was a").ids
    story = told(spec, begin, 40)
    trimmed = trim_vocabulary(spec, tokenizer, [STORY, tokenizer.decode(story)])
    assert trimmed.spec.vocabulary_size < spec.vocabulary_size
    again = told(trimmed.spec, [trimmed.ids[index] for index in begin], 40)
    assert again == [trimmed.ids[index] for index in story]
    assert trimmed.tokenizer.decode(again) == tokenizer.decode(story)


@pytest.mark.needs_tensorflow
def test_a_bundle_of_a_trimmed_model_begins_and_stops_where_the_whole_does(
    stories: tuple[TransformerSpec, Tokenizer],
) -> None:
    spec, tokenizer = stories
    trimmed = trim_vocabulary(spec, tokenizer, [STORY])
    source = Source("keras", SimpleNamespace(sampler=None), "stories", "stories.keras", None)

    def record(spec: TransformerSpec, tokenizer: Tokenizer) -> Any:
        return generation_record(source, tokenizer, spec, context_length=64, chat_template=None)

    before, after = record(spec, tokenizer), record(trimmed.spec, trimmed.tokenizer)
    assert before.start_id is not None
    assert after.start_id == trimmed.ids[before.start_id]
    assert after.stop_ids == tuple(trimmed.ids[index] for index in before.stop_ids)
    assert after.vocabulary_size == len(trimmed.ids)
    tokens = Tokens(tokenizer, 0, 64, spec.vocabulary_size, ()).with_tokenizer(trimmed.tokenizer, len(trimmed.ids))
    assert (tokens.pad_id, tokens.vocabulary_size) == (0, len(trimmed.ids))
