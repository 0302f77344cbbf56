"""Trimmed tokenizers against the whole ones, as the `tokenizers` package runs both: each kind of model, trained here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from edgelm_converters.compress.tokenizer_trim import read_json
from edgelm_converters.compress.vocabulary import Trimmed, trim_vocabulary
from edgelm_converters.compress.vocabulary_texts import compare_tokenizers, conversations, template_texts
from edgelm_converters.tokenizer import describe
from edgelm_converters.tokenizer_sentencepiece import from_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_factory import random_decoder
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgelm.errors import InputError, RecipeError, TokenizerError

STORIES = Path(__file__).parents[3] / "examples" / "stories" / "tokenizer.json"
TEXT = (
    "the quick brown fox jumps over a lazy dog while seventeen wizards quietly examine their broken clockwork telescopes and "
    "complain about unpredictable weather because thunderstorms interrupted yesterday's astronomical observations again"
)
WORDS = TEXT.split()
SENTENCES = [" ".join(WORDS[(7 * i + j * (i % 5 + 1)) % len(WORDS)] for j in range(6)) for i in range(80)]
DOMAIN = SENTENCES[:6]  # what is kept
HELD_OUT = SENTENCES[6:]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>\n{% endfor %}"
)


def byte_level(*, ignore_merges: bool = False, added_behind: bool = False) -> Tokenizer:
    """GPT-2's kind; with its special tokens behind the vocabulary, Llama 3's."""
    result = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=520, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[] if added_behind else special,
    )  # fmt: skip
    result.train_from_iterator(SENTENCES, trainer)
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    end = result.token_to_id("<|im_end|>")
    template = processors.TemplateProcessing(single="<|im_end|> $A", special_tokens=[("<|im_end|>", end)])
    result.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return result


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: a piece can be merged in several ways, and nothing is split before."""
    return Tokenizer.from_file(str(STORIES))


def word_piece() -> Tokenizer:
    result = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    result.normalizer = normalizers.BertNormalizer()
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.decoder = decoders.WordPiece()
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    result.train_from_iterator(SENTENCES, trainer)
    result.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    result.enable_padding(pad_id=0, pad_token="[PAD]", length=16)
    result.enable_truncation(16)
    return result


def unigram() -> Tokenizer:
    """T5's kind, as the `tokenizers` package trains it."""
    result = Tokenizer(models.Unigram())
    result.pre_tokenizer = pre_tokenizers.Metaspace()
    result.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    result.train_from_iterator(SENTENCES, trainer)
    result.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return result


def sentence_piece() -> Tokenizer:
    """XLM-R's kind, as SentencePiece trains it and edgelm converts it: control pieces are no added tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=160, hard_vocab_limit=False, pad_id=0, bos_id=1,
        eos_id=2, unk_id=3, pad_piece="<pad>", byte_fallback=False, minloglevel=3,
    )  # fmt: skip
    return from_sentencepiece(model.getvalue())


def word_level() -> Tokenizer:
    """TextVectorization's kind: 0 is padding, 1 any unknown word."""
    words = ["", "[UNK]", *dict.fromkeys(word for sentence in SENTENCES for word in sentence.split())]
    result = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return result


KINDS = {
    "byte-level": byte_level,
    "byte-level, whole words first, added tokens behind": lambda: byte_level(ignore_merges=True, added_behind=True),
    "byte fallback": byte_fallback,
    "WordPiece": word_piece,
    "Unigram": unigram,
    "SentencePiece": sentence_piece,
    "WordLevel": word_level,
}
_MADE: dict[str, tuple[Tokenizer, Trimmed]] = {}


def size_of(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def trim(tokenizer: Tokenizer, texts: list[str] = DOMAIN, **settings: Any) -> Trimmed:
    return trim_vocabulary(random_decoder(vocabulary=size_of(tokenizer) + 2, layers=1), tokenizer, texts, **settings)


def pair(kind: str) -> tuple[Tokenizer, Trimmed]:
    """Return a whole tokenizer of a kind and the trimmed one, without cutting and padding; each is made once."""
    if kind not in _MADE:
        whole = KINDS[kind]()
        trimmed = trim(whole)
        for tokenizer in (whole, trimmed.tokenizer):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        _MADE[kind] = whole, trimmed
    return _MADE[kind]


def as_trimmed(ids: list[int], trimmed: Trimmed) -> list[int | None]:
    return [trimmed.ids.get(index) for index in ids]


# --- Texts whose tokens were kept ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_has_the_same_tokens_and_fewer_are_left(kind: str) -> None:
    whole, trimmed = pair(kind)
    assert trimmed.spec.vocabulary_size < 0.95 * size_of(whole)
    assert size_of(trimmed.tokenizer) == trimmed.spec.vocabulary_size
    for text in DOMAIN:
        old, new = whole.encode(text), trimmed.tokenizer.encode(text)
        assert new.tokens == old.tokens
        assert new.ids == as_trimmed(old.ids, trimmed)
    assert trimmed.comparison.same == len(DOMAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_dense_and_in_the_old_order_and_0_stays(kind: str) -> None:
    _, trimmed = pair(kind)
    assert list(trimmed.ids) == sorted(trimmed.ids)
    assert list(trimmed.ids.values()) == list(range(len(trimmed.ids)))
    assert trimmed.ids[0] == 0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_whose_tokens_were_all_kept_has_the_same(kind: str, data: st.DataObject) -> None:
    # Words and pieces of the whole vocabulary's language, in any order: many hold kept tokens alone, and many do not.
    whole, trimmed = pair(kind)
    parts = st.sampled_from([*WORDS, *(word[:3] for word in WORDS), *DOMAIN, "▁", "é", "12"])
    text = data.draw(st.lists(parts, max_size=6).map(" ".join) | st.lists(parts, max_size=3).map("".join))
    wanted = as_trimmed(whole.encode(text).ids, trimmed)
    if None not in wanted:
        assert trimmed.tokenizer.encode(text).ids == wanted


# --- Any other text ---


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "byte" in kind])
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join))
def test_any_text_comes_back_from_bytes_as_it_did(kind: str, text: str) -> None:
    whole, trimmed = pair(kind)
    old, new = whole.encode(text), trimmed.tokenizer.encode(text)
    assert trimmed.tokenizer.decode(new.ids) == whole.decode(old.ids)
    if kind.startswith("byte-level") and "<|" not in text:
        assert trimmed.tokenizer.decode(new.ids) == text


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "SentencePiece"])
def test_held_out_texts_are_written_in_smaller_pieces(kind: str) -> None:
    whole, trimmed = pair(kind)
    unknown = {"WordPiece": "[UNK]", "Unigram": "<unk>", "SentencePiece": " <unk>"}[kind]
    found = compare_tokenizers(whole, trimmed.tokenizer, trimmed.ids, HELD_OUT, unknown=whole.token_to_id(unknown))
    assert found.unknown_after == found.unknown_before == 0
    assert found.same < len(HELD_OUT)
    assert found.tokens_after > found.tokens_before
    for text in HELD_OUT:
        old, new = whole.encode(text).ids, trimmed.tokenizer.encode(text).ids
        assert trimmed.tokenizer.decode(new) == whole.decode(old)


def test_a_word_that_was_dropped_is_unknown_where_words_are_not_split() -> None:
    whole, trimmed = pair("WordLevel")
    found = compare_tokenizers(whole, trimmed.tokenizer, trimmed.ids, HELD_OUT, unknown=1)
    dropped = sum(whole.token_to_id(word) not in trimmed.ids for text in HELD_OUT for word in text.split())
    assert found.unknown_before == 0
    assert found.unknown_after == dropped > 0
    assert found.tokens_after == found.tokens_before


def test_a_character_that_only_longer_pieces_have_keeps_them() -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "aø": 4, "##øb": 5, "##ab": 6, "##a": 7}
    whole = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    trimmed = trim(whole, ["a"])
    assert sorted(trimmed.ids) == [0, 1, 2, 4, 5, 7]  # 'ab' and '##ab' can be spelled
    assert trimmed.tokenizer.encode("aøb").tokens == ["aø", "##b"]


def test_a_word_that_was_unknown_may_be_read_without_the_piece_that_led_astray() -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "##bø": 4}
    whole = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    assert whole.encode("abø").tokens == ["[UNK]"]
    trimmed = trim(whole, ["abø"])
    assert trimmed.tokenizer.encode("abø").tokens == ["a", "##bø"]
    assert (trimmed.comparison.unknown_before, trimmed.comparison.unknown_after) == (1, 0)
    assert trimmed.comparison.broken is None


def test_the_lowest_score_stays_for_an_unknown_character_costs_by_it() -> None:
    # 'x' and 'y' are known within longer pieces alone: xa|ya costs 40, an unknown x and aya 1 + 10 + the lowest score.
    pieces = [("<unk>", 0.0), ("a", -1.0), ("xa", -20.0), ("ya", -20.0), ("aya", -1.0), ("z", -2.0), ("zz", -30.0)]
    whole, without = (Tokenizer(models.Unigram(some, 0, False)) for some in (pieces, pieces[:-1]))
    assert whole.encode("xaya").tokens == ["xa", "ya"]
    assert without.encode("xaya").ids == [0, 4]
    trimmed = trim(whole, ["a"])
    assert whole.token_to_id("zz") in trimmed.ids
    assert trimmed.tokenizer.encode("xaya").tokens == ["xa", "ya"]


# --- Merges ---


def test_merges_stay_in_order_and_build_every_piece_that_stays() -> None:
    whole, trimmed = pair("byte-level")
    old, new = (json.loads(tokenizer.to_str())["model"] for tokenizer in (whole, trimmed.tokenizer))
    places = [old["merges"].index(merge) for merge in new["merges"]]
    assert places == sorted(places)
    built = {left + right for left, right in new["merges"]}
    added = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert {piece for piece in new["vocab"] if len(piece) > 1} - added == built


def test_pieces_on_the_way_of_another_merge_go() -> None:
    # 'abcd' is merged as ab + cd; 'abc' would lead there too, had its merge come before.
    vocabulary = {piece: index for index, piece in enumerate(["a", "b", "c", "d", "ab", "cd", "abc", "abcd", "bc"])}
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("ab", "c"), ("abc", "d"), ("b", "c")]
    trimmed = trim(Tokenizer(models.BPE(vocabulary, merges)), ["abcd"])
    assert {trimmed.tokenizer.id_to_token(index) for index in range(len(trimmed.ids))} == {*"abcd", "ab", "cd", "abcd"}
    assert json.loads(trimmed.tokenizer.to_str())["model"]["merges"] == [["a", "b"], ["c", "d"], ["ab", "cd"]]


# --- What else holds ids ---


def test_special_tokens_padding_and_processors_get_the_new_ids() -> None:
    whole = word_piece()
    trimmed = trim(whole)
    tokenizer = trimmed.tokenizer
    assert tokenizer.padding["pad_id"] == tokenizer.token_to_id("[PAD]") == 0
    assert tokenizer.truncation["max_length"] == 16
    assert tokenizer.encode(DOMAIN[0]).tokens == whole.encode(DOMAIN[0]).tokens
    assert tokenizer.encode("a", "dog").tokens == whole.encode("a", "dog").tokens
    for token in ("[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        assert trimmed.ids[whole.token_to_id(token)] == tokenizer.token_to_id(token)
    assert [token.content for token in tokenizer.get_added_tokens_decoder().values()] == [
        token.content for token in whole.get_added_tokens_decoder().values()
    ]


def test_a_roberta_processor_gets_the_new_ids() -> None:
    whole = byte_level()
    start, end = (whole.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    whole.post_processor = processors.RobertaProcessing(("<|im_end|>", end), ("<|im_start|>", start))
    trimmed = trim(whole)
    assert trimmed.tokenizer.encode("the").ids == as_trimmed(whole.encode("the").ids, trimmed)
    assert trimmed.tokenizer.encode("the").tokens[0] == "<|im_start|>"


def test_padding_that_only_its_name_tells_is_kept() -> None:
    whole, trimmed = pair("SentencePiece")
    assert describe(trimmed.tokenizer, max_length=1).pad_id == trimmed.ids[describe(whole, max_length=1).pad_id]
    assert trimmed.tokenizer.token_to_id(" </s>") == trimmed.ids[whole.token_to_id(" </s>")]


def test_ids_that_are_to_be_kept_stay_even_without_a_token() -> None:
    whole = byte_level()
    last = size_of(whole) + 1  # a row of the model beyond the tokenizer
    trimmed = trim(whole, keep=[last])
    assert trimmed.ids[last] == len(trimmed.ids) - 1
    assert len(trimmed.ids) == size_of(trimmed.tokenizer) + 1


def test_a_chat_template_keeps_what_it_writes() -> None:
    whole = byte_level()
    template = TEMPLATE + "{{ 'observations' }}"
    trimmed = trim(whole, ["a fox"], chat_template=template)
    for text in ("observations", *conversations(template, ["a fox"])):
        assert trimmed.tokenizer.encode(text).ids == as_trimmed(whole.encode(text).ids, trimmed)
    assert whole.encode("observations").ids[-1] not in trim(whole, ["a fox"], chat_template=TEMPLATE).ids
    assert template_texts("a{# no #}{% if x == 'b' %}{{ \"c\" }}{% endif %}") == ["a", "b", "c"]


def test_a_chat_template_that_takes_no_plain_conversation_is_noted() -> None:
    trimmed = trim(byte_level(), chat_template="{{ raise_exception('tools only') }}")
    assert "tools only" in trimmed.step.notes[-1]


# --- Limits and refusals ---


def test_a_limit_keeps_what_comes_most_often() -> None:
    whole = word_piece()
    texts = ["the"] * 5 + ["dog"] * 3 + DOMAIN
    least = len(trim(whole, ["a"]).ids)
    trimmed = trim(whole, texts, limit=least + 3)
    assert least < len(trimmed.ids) <= least + 3
    assert whole.token_to_id("the") in trimmed.ids
    assert trimmed.tokenizer.encode("the dog").tokens == whole.encode("the dog").tokens
    assert trimmed.comparison.same < len(texts)
    assert trimmed.step.settings == {"texts": len(texts), "limit": least + 3}


def test_a_limit_below_what_stays_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"10 tokens is too small: 2\d\d stay"):
        trim(byte_level(), limit=10)


def test_no_texts_are_refused() -> None:
    with pytest.raises(InputError, match="no texts"):
        trim(word_level(), [])


def test_ids_beyond_the_model_are_refused() -> None:
    with pytest.raises(RecipeError, match="id 99999 cannot be kept"):
        trim(word_level(), keep=[99999])
    with pytest.raises(TokenizerError, match="another model"):
        trim_vocabulary(random_decoder(vocabulary=8, layers=1), word_level(), DOMAIN)


def edited(change: Any) -> Any:
    """Return a stand-in for a tokenizer of a kind that this version of `tokenizers` does not make."""
    data = json.loads(byte_level().to_str())
    change(data)
    return SimpleNamespace(to_str=lambda: json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["model"].update(type="Neural"), "model 'Neural'"),
        (lambda data: data["model"].update(extra_ids=[1]), "BPE model has 'extra_ids'"),
        (lambda data: data.update(cache=1), "the file has 'cache'"),
        (lambda data: data.update(post_processor={"type": "Shuffle"}), "post-processor 'Shuffle'"),
        (lambda data: data["model"].update(dropout=0.1), "dropout=0.1"),
        (lambda data: data["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix='</w>'"),
    ],
)
def test_what_is_not_known_is_refused(change: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_json(edited(change))
