"""Tokenizers of language models against KerasHub's own `generate_preprocess` and `detokenize`, on vocabularies trained here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.tokenizer import PROBE_TEXTS, check_tokenizer, describe, read_tokenizer, to_hugging_face
from edgelm_converters.tokenizer_keras_hub import is_causal
from edgelm_converters.tokenizer_sentencepiece import special_name
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

pytestmark = pytest.mark.needs_tensorflow
keras_hub = pytest.importorskip("keras_hub")
sentencepiece = pytest.importorskip("sentencepiece")

# A vocabulary must know the difficult characters, or every tokenizer calls them unknown and agrees.
SENTENCES = [text for text in PROBE_TEXTS if text.strip() and max(map(len, text.split())) < 60] * 4
CHAT_TEXTS = (
    "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
    "<start_of_turn>user\nHow are you?<end_of_turn>\n",
    "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>",
    "<s>[INST] hello [/INST] hi</s>",
    "x<|endoftext|>y <|endoftext|> z",
    "<bos>hello<eos><pad>",
)
TEXTS = (*PROBE_TEXTS, *CHAT_TEXTS)

# What each family's tokenizer asks of its vocabulary, beside the pieces.
BYTE_PAIR_FAMILIES: dict[str, tuple[str, ...]] = {
    "GPT2": ("<|endoftext|>",),
    "Llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "Qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "Qwen3": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}
SENTENCE_PIECE_FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"bos_piece": "<s>", "eos_piece": "</s>"},
    "Mistral": {"bos_piece": "<s>", "eos_piece": "</s>"},
    "Phi3": {
        "bos_piece": "<s>",
        "eos_piece": "<|endoftext|>",
        "user_defined_symbols": ["<|user|>", "<|assistant|>", "<|end|>"],
    },
    "Gemma": {"bos_piece": "<bos>", "eos_piece": "<eos>", "add_dummy_prefix": False},
    "Gemma3": {"bos_piece": "<bos>", "eos_piece": "<eos>", "add_dummy_prefix": False},
}
TURNS = ["<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁"]


@pytest.fixture(scope="module")
def byte_pairs() -> tuple[dict[str, int], list[str]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


def train_sentence_piece(family: str, **settings: Any) -> bytes:
    content = io.BytesIO()
    gemma = {"user_defined_symbols": TURNS} if family.startswith("Gemma") else {}
    sentencepiece.SentencePieceTrainer.train(
        # Without runs of one character: their pieces can be put in any order, and the paths tie.
        sentence_iterator=(text for text in SENTENCES if "555" not in text and "éé" not in text),
        num_threads=1,
        model_writer=content,
        vocab_size=1100,
        model_type="bpe",
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        # The settings of these families: nothing is normalised, and bytes stand for what is unknown.
        **{
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "byte_fallback": True,
            "pad_id": 0,
            "eos_id": 1,
            "bos_id": 2,
            "unk_id": 3,
            **SENTENCE_PIECE_FAMILIES[family],
            **gemma,
            **settings,
        },
    )
    return content.getvalue()


@pytest.fixture(scope="module")
def byte_pair_preprocessors(byte_pairs: tuple[dict[str, int], list[str]]) -> dict[str, Any]:
    made = {}
    for family, special in BYTE_PAIR_FAMILIES.items():
        vocabulary, merges = byte_pairs
        vocabulary = {**vocabulary, **{token: len(vocabulary) + index for index, token in enumerate(special)}}
        settings = {"unsplittable_tokens": list(special)} if family.startswith("Qwen") else {}
        tokenizer = getattr(keras_hub.models, f"{family}Tokenizer")(vocabulary, merges, **settings)
        made[family] = getattr(keras_hub.models, f"{family}CausalLMPreprocessor")(tokenizer, sequence_length=32)
    return made


@pytest.fixture(scope="module")
def sentence_piece_preprocessors() -> dict[str, Any]:
    made = {}
    for family in SENTENCE_PIECE_FAMILIES:
        settings = {"has_vision_tokens": False} if family == "Gemma3" else {}
        tokenizer = getattr(keras_hub.models, f"{family}Tokenizer")(proto=train_sentence_piece(family), **settings)
        image = {"image_converter": None} if family == "Gemma3" else {}
        made[family] = getattr(keras_hub.models, f"{family}CausalLMPreprocessor")(
            tokenizer=tokenizer, sequence_length=32, **image
        )
    return made


@pytest.fixture(params=[*BYTE_PAIR_FAMILIES, *SENTENCE_PIECE_FAMILIES])
def preprocessor(
    request: pytest.FixtureRequest,
    byte_pair_preprocessors: dict[str, Any],
    sentence_piece_preprocessors: dict[str, Any],
) -> Any:
    return {**byte_pair_preprocessors, **sentence_piece_preprocessors}[request.param]


def test_a_prompt_gets_the_ids_of_generate(preprocessor: Any) -> None:
    assert is_causal(preprocessor)
    converted = to_hugging_face(preprocessor, max_length=32)
    assert check_tokenizer(preprocessor, converted, TEXTS) == []
    # Longer than the preprocessor's 32, which only fills and cuts batches for training.
    assert converted.truncation is None
    assert len(converted.encode("very " * 300).ids) > 300


def test_a_prompt_begins_with_the_start_token_and_has_no_end(preprocessor: Any) -> None:
    converted = to_hugging_face(preprocessor, max_length=32)
    start = preprocessor.tokenizer.start_token_id
    ids = converted.encode("the weather").ids
    assert ids[:1] == [start] if start is not None else ids[0] != preprocessor.tokenizer.end_token_id
    assert ids[-1] != preprocessor.tokenizer.end_token_id
    assert converted.encode("").ids == ([] if start is None else [start])
    assert converted.encode("the weather", add_special_tokens=False).ids == ids[start is not None :]


def test_text_comes_back_as_keras_hub_gives_it(preprocessor: Any) -> None:
    converted = to_hugging_face(preprocessor, max_length=32)
    for text in TEXTS:
        ids = converted.encode(text, add_special_tokens=False).ids
        if not ids:
            continue
        expected = preprocessor.tokenizer.detokenize([ids])
        assert converted.decode(ids, skip_special_tokens=False) == str(expected[0]), text


def test_text_comes_back_as_it_was(preprocessor: Any) -> None:
    """Nothing is normalised and bytes stand for the unknown, so a text survives; ▁ is SentencePiece's own space."""
    converted = to_hugging_face(preprocessor, max_length=32)
    in_pieces = hasattr(preprocessor.tokenizer, "proto")
    for text in PROBE_TEXTS:
        expected = text.replace("▁", " ") if in_pieces else text
        assert converted.decode(converted.encode(text).ids) == expected, text


def test_start_and_end_tokens_vanish_from_text(preprocessor: Any) -> None:
    converted = to_hugging_face(preprocessor, max_length=32)
    tokenizer = preprocessor.tokenizer
    ids = converted.encode("the weather").ids
    assert converted.decode([*ids, tokenizer.end_token_id]) == "the weather"


@pytest.mark.parametrize("step", ["pieces", "bytes"])
def test_text_streams(preprocessor: Any, step: str) -> None:
    """The stream of whole characters that a session shows is the text, in spite of spaces in front and bytes."""
    converted = to_hugging_face(preprocessor, max_length=32)
    text = "The weather is nice" if step == "pieces" else "naïve 🅰 東京都 \U000e0001 x"
    stream = decoders.DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(converted, index) for index in converted.encode(text).ids]
    assert "".join(piece for piece in pieces if piece) == text


@pytest.mark.parametrize("family", SENTENCE_PIECE_FAMILIES)
def test_control_pieces_are_special_tokens_under_their_own_name_only(
    family: str, sentence_piece_preprocessors: dict[str, Any]
) -> None:
    """What a person writes never becomes a control piece; a chat template can still name one."""
    preprocessor = sentence_piece_preprocessors[family]
    converted = to_hugging_face(preprocessor, max_length=32)
    tokenizer = preprocessor.tokenizer
    written = tokenizer.start_token + "hello" + tokenizer.end_token
    ids = converted.encode(written, add_special_tokens=False).ids
    assert not {tokenizer.start_token_id, tokenizer.end_token_id} & set(ids)
    name = converted.id_to_token(tokenizer.start_token_id)
    assert name == special_name(tokenizer.start_token)
    hello = converted.encode("hello", add_special_tokens=False).ids
    assert converted.encode(f"{name}hello", add_special_tokens=False).ids == [tokenizer.start_token_id, *hello]


def test_turn_markers_of_a_vocabulary_are_found(sentence_piece_preprocessors: dict[str, Any]) -> None:
    tokenizer = sentence_piece_preprocessors["Gemma"].tokenizer
    converted = to_hugging_face(sentence_piece_preprocessors["Gemma"], max_length=32)
    ids = converted.encode("<start_of_turn>user\nhello<end_of_turn>\n", add_special_tokens=False).ids
    assert ids[0] == tokenizer.token_to_id("<start_of_turn>")
    assert tokenizer.token_to_id("<end_of_turn>") in ids


def test_the_start_token_does_not_depend_on_add_start_token(byte_pair_preprocessors: dict[str, Any]) -> None:
    """KerasHub's `generate_preprocess` adds it whatever that says."""
    tokenizer = byte_pair_preprocessors["GPT2"].tokenizer
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, add_start_token=False)
    assert check_tokenizer(preprocessor, to_hugging_face(preprocessor, max_length=8), ["the weather"]) == []


def test_a_tokenizer_that_runs_in_tensorflow_only(byte_pairs: tuple[dict[str, int], list[str]]) -> None:
    vocabulary, merges = byte_pairs
    vocabulary = {**vocabulary, "<|endoftext|>": len(vocabulary)}
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges, _allow_python_workflow=False)
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, _allow_python_workflow=False)
    converted = to_hugging_face(preprocessor, max_length=8)
    assert check_tokenizer(preprocessor, converted, PROBE_TEXTS) == []


@pytest.mark.parametrize("settings", [{"remove_extra_whitespaces": True}, {"byte_fallback": False}])
def test_other_settings_of_sentence_piece(settings: dict[str, Any]) -> None:
    tokenizer = keras_hub.models.LlamaTokenizer(proto=train_sentence_piece("Llama", **settings))
    preprocessor = keras_hub.models.LlamaCausalLMPreprocessor(tokenizer)
    converted = to_hugging_face(preprocessor, max_length=8)
    assert check_tokenizer(preprocessor, converted, TEXTS) == []
    for text in TEXTS:
        ids = converted.encode(text, add_special_tokens=False).ids
        if ids:
            assert converted.decode(ids) == str(tokenizer.detokenize([ids])[0]), text


def test_a_difference_is_found(byte_pair_preprocessors: dict[str, Any]) -> None:
    converted = to_hugging_face(byte_pair_preprocessors["Qwen"], max_length=8)
    mismatches = check_tokenizer(byte_pair_preprocessors["GPT2"], converted, ["the weather"])
    assert [mismatch.expected[1:] for mismatch in mismatches] == [mismatch.found for mismatch in mismatches]
    assert len(mismatches) == 1


def test_padding_that_is_also_a_token_is_not_lost(byte_pair_preprocessors: dict[str, Any]) -> None:
    """GPT-2 fills up with id 0, which is a letter of its own: the mask says where a prompt ends."""
    preprocessor = byte_pair_preprocessors["GPT2"]
    letter = preprocessor.tokenizer.id_to_token(0)
    converted = to_hugging_face(preprocessor, max_length=8)
    assert converted.encode(letter * 3).ids[-1] == 0
    cut = Tokenizer.from_str(converted.to_str())
    cut.enable_truncation(2)
    assert len(check_tokenizer(preprocessor, converted, [letter * 3])) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # KerasHub leaves vocabulary.spm open
@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_keras_hub_preset_is_read(
    tmp_path: Path,
    family: str,
    byte_pair_preprocessors: dict[str, Any],
    sentence_piece_preprocessors: dict[str, Any],
) -> None:
    preprocessor = {**byte_pair_preprocessors, **sentence_piece_preprocessors}[family]
    preprocessor.save_to_preset(str(tmp_path))
    read = read_tokenizer(tmp_path)
    assert check_tokenizer(preprocessor, read, TEXTS) == []
    assert read.truncation is None
    record = describe(read, max_length=128)
    assert record.max_length == 128
    assert record.vocabulary_size == preprocessor.tokenizer.vocabulary_size()
    assert np.asarray(preprocessor.tokenizer.pad_token_id) == record.pad_id
