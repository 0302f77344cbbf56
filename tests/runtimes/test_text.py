from __future__ import annotations

import time
from pathlib import Path

import pytest
from bundle_factory import make_tokenizer
from edgelm_runtimes.text import Encoder, open_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgelm.bundle import TokenizerRecord
from edgelm.errors import InputError, TokenizerError

WORDS = [line for line in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split() if line]
MAX_LENGTH = 12


def record(max_length: int = MAX_LENGTH, vocabulary_size: int = 100_000) -> TokenizerRecord:
    return TokenizerRecord("tokenizer.json", 0, max_length, vocabulary_size)


def trained(kind: str) -> Tokenizer:
    """A small tokenizer of each family that is in use."""
    corpus = [" ".join(WORDS)] * 3 + ["Ünïcödé 漢字 かな 한국어 مرحبا", "a  b\tc\n\nd"]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
        )
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    elif kind == "byte-bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(["<two words>", "<|x|>"])
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300,
            unk_token="<unk>",
            special_tokens=["<unk>"],
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


TOKENIZERS = {kind: trained(kind) for kind in ("wordpiece", "byte-bpe", "unigram")}


def whole(kind: str, text: str, max_length: int = MAX_LENGTH) -> tuple[list[int], bool]:
    """Tokenize all of a text, with a copy of the tokenizer that the encoder under test does not share."""
    tokenizer = Tokenizer.from_str(TOKENIZERS[kind].to_str())
    tokenizer.enable_truncation(max_length)
    encoding = tokenizer.encode(text)
    return encoding.ids, bool(encoding.overflowing)


ENCODERS = {kind: Encoder(Tokenizer.from_str(TOKENIZERS[kind].to_str()), record()) for kind in TOKENIZERS}
ODD = (" ", "  ", "\t", "\n\n", "\u00a0", "\u3000", "<two words>", "<|x|>", "[SEP]", "漢字", "e\u0301", "👩‍👩‍👧", "'s")
PIECES = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(ODD), st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
)
GAPLESS = ("x" * 200_000, "漢" * 100_000, "word\u00a0" * 40_000, " " * 100_000 + "end", "a" + " " * 100_000)
SCRIPTS = ("a\0b", "\x01\x02 card", "漢字", "مرحبا", "👩‍👩‍👧", "\u202e card", "\ufeffcard", "e\u0301" * 50)


class TestCuttingHugeTexts:
    @pytest.mark.parametrize("kind", list(TOKENIZERS))
    @settings(max_examples=60, deadline=None)
    @given(pieces=st.lists(PIECES, min_size=1, max_size=40), glue=st.sampled_from(["", " "]), repeat=st.integers(1, 80))
    def test_changes_nothing(self, kind: str, pieces: list[str], glue: str, repeat: int) -> None:
        text = glue.join(pieces * repeat)
        ids, truncated = whole(kind, text)
        if not text.strip() or not ids:
            with pytest.raises(InputError):
                ENCODERS[kind].encode(text)
            return
        encoded = ENCODERS[kind].encode(text)
        assert encoded.ids == ids
        assert encoded.truncated == truncated

    @pytest.mark.parametrize("kind", list(TOKENIZERS))
    def test_is_quick(self, kind: str) -> None:
        text = " ".join(WORDS * (1_000_000 // len(" ".join(WORDS)) + 1))
        begin = time.perf_counter()
        encoded = ENCODERS[kind].encode(text)
        quick = time.perf_counter() - begin
        begin = time.perf_counter()
        ids, _ = whole(kind, text)
        slow = time.perf_counter() - begin
        assert encoded.ids == ids
        assert encoded.truncated
        # A megabyte takes 0.2 to 2 s whole, and about 1 ms so: a factor of 10 leaves room for a busy machine.
        assert quick < slow / 10

    @pytest.mark.parametrize("kind", list(TOKENIZERS))
    @pytest.mark.parametrize("text", GAPLESS)
    def test_texts_without_a_gap(self, kind: str, text: str) -> None:
        ids, truncated = whole(kind, text)
        encoded = ENCODERS[kind].encode(text)
        assert (encoded.ids, encoded.truncated) == (ids, truncated)

    def test_cutting_from_the_left(self) -> None:
        tokenizer = make_tokenizer()
        tokenizer.enable_truncation(99, direction="left")
        encoded = Encoder(tokenizer, record(6)).encode("cash " * 5000 + "my card")
        assert encoded.ids[-3:] == make_tokenizer().encode("my card").ids[-3:]
        assert encoded.truncated
        assert len(encoded.ids) == 6


class TestTexts:
    @pytest.fixture
    def encoder(self) -> Encoder:
        return Encoder(make_tokenizer(), record(8))

    def test_ids_and_segments(self, encoder: Encoder) -> None:
        encoded = encoder.encode("where is my card")
        assert encoded.ids == [2, 4, 5, 6, 7, 3]
        assert encoded.segments == [0] * 6
        assert not encoded.truncated

    def test_the_tokenizers_own_padding_is_not_used(self) -> None:
        tokenizer = make_tokenizer()
        tokenizer.enable_padding(length=20)
        assert len(Encoder(tokenizer, record()).encode("card").ids) == 3

    def test_a_cut_is_told(self, encoder: Encoder) -> None:
        assert not encoder.encode("cash " * 6).truncated
        encoded = encoder.encode("cash " * 7)
        assert encoded.truncated
        assert len(encoded.ids) == 8

    @pytest.mark.parametrize("text", ["", " ", "\n\t\u00a0\u3000"])
    def test_empty(self, encoder: Encoder, text: str) -> None:
        with pytest.raises(InputError, match="The text is empty"):
            encoder.encode(text)

    @pytest.mark.parametrize("text", [None, 5, b"card", ["card"]])
    def test_no_text(self, encoder: Encoder, text: object) -> None:
        with pytest.raises(InputError, match="A text was expected, and a value of the type"):
            encoder.encode(text)  # type: ignore[arg-type]

    @pytest.mark.parametrize("text", ["\ud800", "card \udfff card"])
    def test_half_a_surrogate_pair(self, encoder: Encoder, text: str) -> None:
        with pytest.raises(InputError, match="half a surrogate pair"):
            encoder.encode(text)

    @pytest.mark.parametrize("text", SCRIPTS)
    def test_any_script(self, encoder: Encoder, text: str) -> None:
        assert encoder.encode(text).ids[0] == 2

    def test_a_text_without_tokens(self) -> None:
        tokenizer = make_tokenizer()
        tokenizer.post_processor = processors.Sequence([])
        with pytest.raises(InputError, match="finds no token"):
            Encoder(tokenizer, record()).encode("\u200b\x01")

    def test_an_id_beyond_the_model(self) -> None:
        with pytest.raises(InputError, match="gave the id 7, and the model has 7"):
            Encoder(make_tokenizer(), record(vocabulary_size=7)).encode("my card")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": "9.0"}'])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer that this version"):
        open_encoder(tmp_path / "tokenizer.json", record())
