"""Converted tokenizers against the ones that they came from, id by id, on vocabularies trained here."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from edgelm_converters import tokenizer as tokenizer_module
from edgelm_converters.tokenizer import (
    PROBE_TEXTS,
    check_fits,
    check_tokenizer,
    describe,
    from_text_vectorization,
    read_tokenizer,
    to_hugging_face,
)
from edgelm_converters.tokenizer_sentencepiece import from_sentencepiece, sentencepiece_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgelm.errors import TokenizerError

pytestmark = pytest.mark.needs_tensorflow
keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")
sentencepiece = pytest.importorskip("sentencepiece")

# A vocabulary must know the difficult characters, or every tokenizer calls them unknown and agrees. TensorFlow Text takes no
# piece of more than 256 bytes.
SENTENCES = [text for text in PROBE_TEXTS if text.strip() and max(map(len, text.split())) < 60] * 4
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_word_piece(*, lowercase: bool = True, strip_accents: bool = True) -> list[str]:
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=BERT_TOKENS, show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    ids = trained.get_vocab()
    return sorted(ids, key=lambda piece: ids[piece])


def train_byte_pair() -> tuple[dict[str, int], list[str]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=ROBERTA_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def train_sentence_piece(kind: str = "unigram", rule: str = "nmt_nfkc_cf", **settings: Any) -> bytes:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Without runs of one character: their pieces can be put in any order, and the paths tie.
        sentence_iterator=(text for text in SENTENCES if "555" not in text and "éé" not in text),
        num_threads=1,
        model_writer=content,
        vocab_size=900 if kind == "bpe" else 700,
        model_type=kind,
        normalization_rule_name=rule,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="<pad>",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        control_symbols=["[MASK]"],
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return content.getvalue()


@pytest.fixture(scope="module")
def pieces() -> list[str]:
    return train_word_piece()


@pytest.fixture(scope="module")
def byte_pairs() -> tuple[dict[str, int], list[str]]:
    return train_byte_pair()


@pytest.fixture(scope="module")
def proto() -> bytes:
    return train_sentence_piece()


@pytest.fixture(params=["tf.data", "python"])
def workflow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run KerasHub's tokenizers inside tf.data and in plain Python, whichever `predict` uses here."""
    in_tensorflow = request.param == "tf.data"
    for module in ("edgelm_converters.tokenizer", "edgelm_converters.tokenizer_keras_hub"):
        monkeypatch.setattr(f"{module}.uses_tensorflow", lambda tokenizer: in_tensorflow)
    return str(request.param)


# --- KerasHub ---


@pytest.mark.parametrize("strip_accents", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_word_piece_gives_keras_hub_s_ids(workflow: str, lowercase: bool, strip_accents: bool) -> None:
    tokenizer = keras_hub.models.BertTokenizer(
        vocabulary=train_word_piece(lowercase=lowercase, strip_accents=strip_accents),
        lowercase=lowercase,
        strip_accents=strip_accents,
    )
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=64)
    assert check_tokenizer(preprocessor, to_hugging_face(preprocessor, max_length=64), PROBE_TEXTS) == []


@pytest.mark.parametrize("settings", [{"special_tokens_in_strings": True}, {"split_on_cjk": False}])
def test_word_piece_settings(workflow: str, pieces: list[str], settings: dict[str, bool]) -> None:
    tokenizer = keras_hub.models.DistilBertTokenizer(vocabulary=pieces, lowercase=True, **settings)
    preprocessor = keras_hub.models.DistilBertTextClassifierPreprocessor(tokenizer, sequence_length=40)
    assert check_tokenizer(preprocessor, to_hugging_face(tokenizer, max_length=40), PROBE_TEXTS) == []


def test_plain_word_piece_adds_no_special_tokens(workflow: str, pieces: list[str]) -> None:
    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(vocabulary=pieces, lowercase=True, sequence_length=12)
    converted = to_hugging_face(tokenizer, max_length=64)
    assert check_tokenizer(tokenizer, converted, PROBE_TEXTS) == []
    assert describe(converted, max_length=64).max_length == 12


def test_byte_pairs_give_keras_hub_s_ids(workflow: str, byte_pairs: tuple[dict[str, int], list[str]]) -> None:
    tokenizer = keras_hub.models.RobertaTokenizer(*byte_pairs)
    preprocessor = keras_hub.models.RobertaTextClassifierPreprocessor(tokenizer, sequence_length=64)
    assert check_tokenizer(preprocessor, to_hugging_face(preprocessor, max_length=64), PROBE_TEXTS) == []


def test_byte_pairs_of_tf_data_and_python_differ(
    monkeypatch: pytest.MonkeyPatch, byte_pairs: tuple[dict[str, int], list[str]]
) -> None:
    """Why it matters which of them `predict` runs: numbers, among others, become other tokens."""
    tokenizer = keras_hub.models.RobertaTokenizer(*byte_pairs)
    ids = []
    for in_tensorflow in (True, False):
        monkeypatch.setattr(
            "edgelm_converters.tokenizer_keras_hub.uses_tensorflow", lambda tokenizer, answer=in_tensorflow: answer
        )
        converted = to_hugging_face(tokenizer, max_length=64)
        ids.append([converted.encode(text).ids for text in PROBE_TEXTS])
    different = [text for text, one, other in zip(PROBE_TEXTS, *ids, strict=True) if one != other]
    assert any(text.startswith("0 7 42 1234567890") for text in different)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentence_pieces_give_keras_hub_s_ids(workflow: str, kind: str) -> None:
    tokenizer = keras_hub.models.AlbertTokenizer(proto=train_sentence_piece(kind))
    preprocessor = keras_hub.models.AlbertTextClassifierPreprocessor(tokenizer, sequence_length=64)
    converted = to_hugging_face(preprocessor, max_length=64)
    assert check_tokenizer(preprocessor, converted, PROBE_TEXTS) == []
    assert describe(converted).pad_id == tokenizer.pad_token_id


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_pairs_are_joined_as_keras_hub_joins_them(
    name: str, pieces: list[str], byte_pairs: tuple[dict[str, int], list[str]]
) -> None:
    vocabulary = {"Bert": (pieces,), "Roberta": byte_pairs}[name]
    tokenizer = getattr(keras_hub.models, f"{name}Tokenizer")(*vocabulary)
    preprocessor = getattr(keras_hub.models, f"{name}TextClassifierPreprocessor")(tokenizer, sequence_length=24)
    encoded = to_hugging_face(tokenizer, max_length=24).encode("the weather", "is so")
    inputs = preprocessor(x=(["the weather"], ["is so"]))
    count = len(encoded.ids)
    assert encoded.ids == list(keras.ops.convert_to_numpy(inputs["token_ids"])[0][:count])
    if "segment_ids" in inputs:
        assert encoded.type_ids == list(keras.ops.convert_to_numpy(inputs["segment_ids"])[0][:count])


def test_truncation_keeps_the_special_tokens(pieces: list[str]) -> None:
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=pieces, lowercase=True)
    ids = to_hugging_face(tokenizer, max_length=6).encode("weather " * 20).ids
    assert (len(ids), ids[0], ids[-1]) == (6, pieces.index("[CLS]"), pieces.index("[SEP]"))
    with pytest.raises(TokenizerError, match="A length of 2 leaves no room"):
        to_hugging_face(tokenizer, max_length=2)


# Characters that both sides know: assigned in the Unicode of tokenizers' tables (12), and no Cherokee, which folds upwards.
_CHARACTERS = st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=("Cs", "Cn", "Co")).filter(
    lambda letter: not 0x13A0 <= ord(letter) <= 0x13FF and not 0x1C80 <= ord(letter) <= 0x1C8F
)


@pytest.fixture(scope="module")
def letters() -> tuple[Any, Tokenizer]:
    """A KerasHub tokenizer with a piece for each letter that folding may give, and the same converted."""
    folded = "".join(unicodedata.normalize("NFKC", chr(code)).casefold() for code in range(33, 0x2100))
    alphabet = sorted(set(folded + unicodedata.normalize("NFD", folded)))
    vocabulary = [*BERT_TOKENS, *alphabet, *(f"##{letter}" for letter in alphabet)]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=vocabulary, lowercase=True)
    return tokenizer, to_hugging_face(tokenizer, max_length=10_000)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(_CHARACTERS, max_size=12), min_size=20, max_size=20))
def test_word_piece_on_any_text(letters: tuple[Any, Tokenizer], texts: list[str]) -> None:
    tokenizer, converted = letters
    expected = [list(ids) for ids in tokenizer._tokenize_python(texts)]
    assert [encoding.ids for encoding in converted.encode_batch(texts, add_special_tokens=False)] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pieces: keras_hub.tokenizers.ByteTokenizer(), "ByteTokenizer is not one of KerasHub's"),
        (lambda pieces: keras_hub.tokenizers.WordPieceTokenizer(pieces, split=False), "split=False"),
        (lambda pieces: keras_hub.models.BertTokenizer(), "no vocabulary"),
        (lambda pieces: keras_hub.models.RobertaTokenizer(), "no vocabulary"),
        (lambda pieces: keras_hub.tokenizers.SentencePieceTokenizer(), "no model"),
    ],
)
def test_what_cannot_be_converted_is_refused(make: Any, message: str, pieces: list[str]) -> None:
    with pytest.raises(TokenizerError, match=message):
        to_hugging_face(make(pieces), max_length=16)


def test_begin_and_end_tokens_inside_sentencepiece_are_refused(proto: bytes) -> None:
    tokenizer = keras_hub.tokenizers.SentencePieceTokenizer(proto=proto, add_bos=True)
    with pytest.raises(TokenizerError, match="add_bos"):
        to_hugging_face(tokenizer, max_length=16)


def test_a_difference_is_found(pieces: list[str]) -> None:
    cased = keras_hub.models.BertTokenizer(vocabulary=pieces, lowercase=False)
    folded = to_hugging_face(keras_hub.models.BertTokenizer(vocabulary=pieces, lowercase=True), max_length=64)
    (mismatch,) = check_tokenizer(cased, folded, ["the weather", "The Weather"])
    assert mismatch.text == "The Weather"
    assert mismatch.expected != mismatch.found


# --- SentencePiece ---


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byte_fallback": True},
        {"remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["<sep>", "<sep>>"]},
    ],
)
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_bpe_model_gives_sentencepiece_s_ids(rule: str, settings: dict[str, Any]) -> None:
    proto = train_sentence_piece("bpe", rule, **settings)
    texts = (*PROBE_TEXTS, "a <sep> b <sep>", "<sep>x<sep>>y")
    assert check_tokenizer(sentencepiece_processor(proto), from_sentencepiece(proto), texts) == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byte_fallback": True},
        {"remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["<sep>", "<sep>>"]},
    ],
)
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_unigram_model_gives_sentencepiece_s_ids(rule: str, settings: dict[str, Any]) -> None:
    """But for ties: two paths of the same pieces in another order (55|5, 5|55) score the same, up to rounding."""
    proto = train_sentence_piece("unigram", rule, **settings)
    texts = (*PROBE_TEXTS, "a <sep> b <sep>", "<sep>x<sep>>y")
    mismatches = check_tokenizer(sentencepiece_processor(proto), from_sentencepiece(proto), texts)
    assert all(sorted(mismatch.expected) == sorted(mismatch.found) for mismatch in mismatches)
    assert len(mismatches) <= 2


def test_control_pieces_are_never_found_in_a_text(proto: bytes) -> None:
    converted = from_sentencepiece(proto)
    control = {0, 2, 3, 4}
    for text in ("[CLS] hello [SEP]", "<pad>", "[MASK]", " [CLS]"):
        assert not control & set(converted.encode(text).ids)


def test_models_that_split_by_words_are_refused() -> None:
    with pytest.raises(TokenizerError, match="only unigram and BPE"):
        from_sentencepiece(train_sentence_piece("word"))


def test_spaces_at_the_end_of_words_are_refused() -> None:
    with pytest.raises(TokenizerError, match="spaces in its own way"):
        from_sentencepiece(train_sentence_piece(treat_whitespace_as_suffix=True))


# --- TextVectorization ---


@pytest.mark.parametrize("standardize", ["lower_and_strip_punctuation", "lower", "strip_punctuation", None])
@pytest.mark.parametrize(
    ("split", "length"),
    [("whitespace", 16), ("whitespace", None), ("character", 16), ("character", None), (None, None)],
)
def test_text_vectorization_gives_its_ids(standardize: str | None, split: str | None, length: int | None) -> None:
    layer = keras.layers.TextVectorization(400, standardize, split, output_sequence_length=length)
    layer.adapt(SENTENCES)
    texts = [text for text in PROBE_TEXTS if text]
    assert check_tokenizer(layer, from_text_vectorization(layer), texts) == []


def test_text_vectorization_has_its_length_and_padding() -> None:
    layer = keras.layers.TextVectorization(output_sequence_length=9, vocabulary=["weather", "the"])
    converted = from_text_vectorization(layer)
    record = describe(converted, max_length=512)
    assert (record.pad_id, record.max_length, record.vocabulary_size) == (0, 9, 4)
    assert converted.encode("The WEATHER, today!").ids == [3, 2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"standardize": lambda text: text}, "function of its own"),
        ({"split": lambda text: text}, "function of its own"),
        ({"output_mode": "multi_hot"}, "counts or n-grams"),
        ({"ngrams": 2}, "counts or n-grams"),
    ],
)
def test_text_vectorization_that_cannot_be_converted(settings: dict[str, Any], message: str) -> None:
    layer = keras.layers.TextVectorization(vocabulary=["weather", "the"], **settings)
    with pytest.raises(TokenizerError, match=message):
        from_text_vectorization(layer)


def test_text_vectorization_without_vocabulary() -> None:
    with pytest.raises(TokenizerError, match=r"call adapt\(\)"):
        from_text_vectorization(keras.layers.TextVectorization())


# --- Files ---


def test_tokenizer_json_is_read(tmp_path: Path, pieces: list[str]) -> None:
    tokenizer = to_hugging_face(keras_hub.models.BertTokenizer(vocabulary=pieces), max_length=32)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path / "tokenizer.json", tmp_path):
        read = read_tokenizer(path)
        assert [read.encode(text).ids for text in PROBE_TEXTS] == [tokenizer.encode(text).ids for text in PROBE_TEXTS]


@pytest.mark.parametrize("config", [None, {"do_lower_case": True}, {"do_lower_case": False}, {}])
def test_vocabulary_is_read(tmp_path: Path, pieces: list[str], config: dict[str, bool] | None) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = read_tokenizer(tmp_path / "vocab.txt")
    ids = tokenizer.encode("The Weather").ids
    assert (ids[0], ids[-1]) == (pieces.index("[CLS]"), pieces.index("[SEP]"))
    folds = (config or {}).get("do_lower_case", True)
    assert (ids == tokenizer.encode("the weather").ids) == folds
    assert describe(tokenizer, max_length=128).pad_id == pieces.index("[PAD]")


def test_vocabulary_with_capitals_keeps_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\nThe\n")
    assert read_tokenizer(tmp_path / "vocab.txt").encode("The the THE").ids == [3, 2, 1]


@pytest.mark.parametrize("name", ["tokenizer.model", "vocabulary.spm"])
def test_sentencepiece_model_is_read(tmp_path: Path, proto: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(proto)
    assert check_tokenizer(sentencepiece_processor(proto), read_tokenizer(tmp_path / name), PROBE_TEXTS) == []


def test_sentencepiece_model_that_is_read_otherwise_warns(
    tmp_path: Path, proto: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(proto)
    # Marks in an unusual order: the dot below belongs before the accent above.
    monkeypatch.setattr(tokenizer_module, "PROBE_TEXTS", ("weather", "e\u0302\u0323"))
    with pytest.warns(UserWarning, match="reads 1 of 2 difficult texts otherwise than SentencePiece"):
        read_tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # KerasHub leaves vocabulary.spm open
@pytest.mark.parametrize("name", ["Bert", "Roberta", "Albert"])
def test_keras_hub_preset_is_read(
    tmp_path: Path, name: str, pieces: list[str], byte_pairs: tuple[dict[str, int], list[str]], proto: bytes
) -> None:
    vocabulary = {"Bert": (pieces,), "Roberta": byte_pairs, "Albert": (proto,)}[name]
    tokenizer = getattr(keras_hub.models, f"{name}Tokenizer")(*vocabulary)
    preprocessor = getattr(keras_hub.models, f"{name}TextClassifierPreprocessor")(tokenizer, sequence_length=48)
    preprocessor.save_to_preset(str(tmp_path))
    read = read_tokenizer(tmp_path)
    assert describe(read).max_length == 48
    assert check_tokenizer(preprocessor, read, PROBE_TEXTS) == []
    with pytest.raises(TokenizerError, match="part of a KerasHub preset: give the folder"):
        read_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "assets" / "tokenizer" / tokenizer.file_assets[0]).unlink()
    with pytest.raises(TokenizerError, match=r"preset .* is damaged or incomplete"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "is not valid JSON"),
        ("tokenizer.json", b"[]", "holds a list"),
        ("tokenizer.json", b'{"a": 1}', "has no 'model'"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Nonsense"}}', "damaged or of a newer format"),
        ("tokenizer.json", b'{"module": "os", "class_name": "x", "config": {}}', "part of a KerasHub preset"),
        ("vocab.txt", b"hello\nworld\n", r"no line of it is '\[UNK\]'"),
        ("vocab.txt", b"[UNK]\n\xff\xfe\n", "is not UTF-8 text"),
        ("tokenizer.model", b"not a model", "not a SentencePiece model, or it is damaged"),
        ("tokenizer.model", b"", "no unknown piece: it is damaged"),
        ("tokenizer.bin", b"", "is not a tokenizer that edgelm reads"),
    ],
)
def test_damaged_and_foreign_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(tmp_path / name)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be read: No such file"):
        read_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"module": "builtins", "class_name": "print", "config": {}}')
    with pytest.raises(TokenizerError, match="is not a KerasHub preset"):
        read_tokenizer(tmp_path)


# --- For the manifest ---


def word_level(words: list[str]) -> Tokenizer:
    return Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))


def test_padding_id() -> None:
    assert describe(word_level(["[UNK]", "a"]), max_length=8).pad_id == 0
    assert describe(word_level(["[UNK]", "a", "<pad>"]), max_length=8).pad_id == 2
    tokenizer = word_level(["[UNK]", "[PAD]", "a"])
    assert describe(tokenizer, max_length=8).pad_id == 1
    tokenizer.enable_padding(pad_id=2, pad_token="a")
    assert describe(tokenizer, max_length=8).pad_id == 2


def test_length_is_the_shorter_one() -> None:
    tokenizer = word_level(["[UNK]", "a"])
    with pytest.raises(TokenizerError, match="give a sequence length"):
        describe(tokenizer)
    tokenizer.enable_truncation(16)
    assert describe(tokenizer).max_length == 16
    assert describe(tokenizer, max_length=512).max_length == 16
    assert describe(tokenizer, max_length=8).max_length == 8


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = word_level(["[UNK]", *(f"word{index}" for index in range(1499))])
    check_fits(tokenizer, 1500)
    with pytest.raises(TokenizerError, match="has 1,500 ids and the model's embedding 1,499 rows"):
        check_fits(tokenizer, 1499)


def test_holes_in_a_vocabulary_count() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 99}, unk_token="[UNK]"))
    assert describe(tokenizer, max_length=8).vocabulary_size == 100
    with pytest.raises(TokenizerError, match="100 ids"):
        check_fits(tokenizer, 50)
