"""KerasHub's tokenizers as Hugging Face ones, with the same ids.

KerasHub tokenizes in two ways: in plain Python, and as TensorFlow operations inside ``tf.data``. What counts here is
what the model itself uses when it is given strings:

- ``fit`` and ``predict`` of a classifier: plain Python where KerasHub feeds its models through `grain`, ``tf.data``
  otherwise, because the model was trained on those ids;
- ``generate`` of a language model: plain Python, unless its tokenizer forbids it. A prompt gets the model's start token,
  whatever ``add_start_token`` says (KerasHub looks at that in training only), and no end token.

Only for a byte-pair vocabulary do the two give different ids. ``tf.data`` splits a text into words as GPT-2 does. Plain
Python hands the expression of Llama 3 to ``tokenizers`` as a plain string, which is found in no text: nothing is split, and
merges may cross words (KerasHub 0.32).

What a WordPiece tokenizer cannot say in a ``tokenizer.json`` as it is usually written, it says by these means:

- KerasHub splits a text first and folds the case of each word afterwards, where compatibility normalisation can bring
  in spaces and punctuation. So boundaries are marked with U+0001 before anything is folded; the mark cannot be part
  of a word, for KerasHub cuts at every control character.
- It counts the length of a word in bytes. So words and vocabulary go over to the bytes' letters that GPT-2 uses, in
  which a letter is a byte.

Known to differ, and shown by :func:`edgelm_converters.tokenizer.check_tokenizer` where a text has it:

- characters newer than Unicode 12, Cherokee and U+1C80 to U+1C88, whose case is folded otherwise;
- a NUL, at which ``tf.data`` ends a text;
- with a byte-pair tokenizer's ``add_prefix_space`` under ``tf.data``, a text that is empty or has special tokens in it.
"""

from __future__ import annotations

import sys
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgelm.errors import TokenizerError
from edgelm_converters.tokenizer_sentencepiece import from_sentencepiece

__all__ = ["is_causal", "to_hugging_face", "uses_tensorflow"]

_MARK = "\x01"
_PUNCTUATION = r"!-/:-@\[-`{-~\p{P}"
_CJK = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_BLANK = r"[ \p{Cc}\p{Cf}]"
# What Unicode calls default ignorable, apart from the format characters, at which KerasHub cuts before.
_IGNORABLE = (
    r"[\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}\x{FFF0}-\x{FFF8}"
    r"\x{E0100}-\x{E01EF}]"
)
# Where folding differs from lower case, once a text is decomposed.
_FOLDS = {"ß": "ss", "ς": "σ", "\u0345": "ι"}
_MAX_BYTES_PER_WORD = 100

# The expressions of KerasHub's tf.data path, which marks what a lookahead would find with a Devanagari six.
_SIX = "\u096c"
_SPACES = r"\x{a0}\x{2009}\x{202f}\x{3000}"
_ASCII_SPACES = r" \t\n\f\r"
_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    rf"|[{_ASCII_SPACES}{_SPACES}]+[\n\r\t\f{_SIX}{_SPACES}]| ?\p{{L}}+"
    rf"| ?\p{{N}}+| ?[^{_ASCII_SPACES}\p{{L}}\p{{N}}{_SPACES}]+"
)
_LAST_SPACE = rf"[ \t\r\f\v{_SIX}{_SPACES}]\z"


def to_hugging_face(tokenizer: Any, *, max_length: int, causal: bool | None = None) -> Tokenizer:
    """Return a KerasHub tokenizer as a Hugging Face one.

    Encoding a text gives the ids that KerasHub's preprocessor gives, without its padding. A classifier's has the model's
    start and end tokens where there are any, and is cut to `max_length`; a pair of texts is joined as KerasHub joins it. A
    language model's has the start token alone, as ``generate_preprocess`` gives it, and is never cut.

    Args:
        tokenizer: A ``keras_hub`` tokenizer (WordPiece, byte-pair or SentencePiece), or a preprocessor that holds one.
        max_length: The most ids that a classifier's text gives, start and end tokens among them.
        causal: Whether it is a language model's. None: as the preprocessor says; a bare tokenizer is a classifier's.

    Raises:
        TokenizerError: It is of another kind, has no vocabulary, or `max_length` leaves no room for the text.
    """
    causal = is_causal(tokenizer) if causal is None else causal
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    kinds = _kinds(tokenizer)
    if "WordPieceTokenizer" in kinds:
        result = _word_piece(tokenizer)
    elif "BytePairTokenizer" in kinds:
        result = _byte_pair(
            tokenizer, in_tensorflow=_forbids_python(tokenizer) if causal else uses_tensorflow(tokenizer)
        )
    elif "SentencePieceTokenizer" in kinds:
        result = _sentence_piece(tokenizer, causal=causal)
    else:
        raise TokenizerError(
            f"The tokenizer {type(tokenizer).__name__} is not one of KerasHub's WordPiece, byte-pair or SentencePiece "
            "tokenizers: give the tokenizer as a tokenizer.json, vocab.txt or SentencePiece .model file."
        )
    if causal:
        _add_start_token(result, tokenizer)
        return result
    separators = 2 if "RobertaTokenizer" in kinds else 1
    room = max_length - _add_special_tokens(result, tokenizer, separators)
    if room < 1:
        raise TokenizerError(f"A length of {max_length} leaves no room for text beside the start and end tokens.")
    result.enable_truncation(min(max_length, tokenizer.sequence_length or max_length))
    return result


def is_causal(preprocessor: Any) -> bool:
    """Return whether a KerasHub preprocessor is a language model's (``GPT2CausalLMPreprocessor`` and its like)."""
    return "CausalLMPreprocessor" in _kinds(preprocessor)


def uses_tensorflow(tokenizer: Any) -> bool:
    """Return whether ``fit`` and ``predict`` run a KerasHub tokenizer inside ``tf.data``, not in plain Python."""
    pipeline = sys.modules.get("keras_hub.src.utils.pipeline_model")
    feeds_by_grain = getattr(pipeline, "grain", None) is not None
    return not feeds_by_grain or _forbids_python(tokenizer)


def _forbids_python(tokenizer: Any) -> bool:
    return not getattr(tokenizer, "_allow_python_workflow", False)


def _kinds(thing: Any) -> set[str]:
    """Return the names of the KerasHub classes that something is an instance of."""
    return {
        kind.__name__ for kind in type(thing).__mro__ if kind.__module__.split(".")[0] in ("keras_hub", "keras_nlp")
    }


def _add_start_token(result: Tokenizer, tokenizer: Any) -> None:
    """Let a prompt begin with the model's start token, where it has one."""
    start = getattr(tokenizer, "start_token_id", None)
    if start is None:
        return
    first = str(tokenizer.start_token)
    result.post_processor = processors.TemplateProcessing(
        single=[f"{first}:0", "$A:0"], pair=[f"{first}:0", "$A:0", "$B:1"], special_tokens=[(first, int(start))]
    )


def _add_special_tokens(result: Tokenizer, tokenizer: Any, separators: int) -> int:
    """Give the tokenizer its start and end tokens, and return how many a single text gets."""
    start, end = getattr(tokenizer, "start_token_id", None), getattr(tokenizer, "end_token_id", None)
    if start is None or end is None:
        return 0
    first, last = str(tokenizer.start_token), str(tokenizer.end_token)
    result.post_processor = processors.TemplateProcessing(
        single=[f"{first}:0", "$A:0", f"{last}:0"],
        pair=[f"{first}:0", "$A:0", *[f"{last}:0"] * separators, "$B:1", f"{last}:1"],
        special_tokens=[(first, int(start)), (last, int(end))],
    )
    return 2


def _word_piece(tokenizer: Any) -> Tokenizer:
    if not tokenizer.split:
        raise TokenizerError(
            "This WordPiece tokenizer takes words that were split before (split=False), and how is not known: give the "
            "tokenizer as a tokenizer.json file."
        )
    if not tokenizer.vocabulary:
        raise TokenizerError("This WordPiece tokenizer has no vocabulary: set it before converting.")
    to_letters = normalizers.ByteLevel()
    result = Tokenizer(
        models.WordPiece(
            vocab={to_letters.normalize_str(token): index for index, token in enumerate(tokenizer.vocabulary)},
            unk_token=to_letters.normalize_str(tokenizer.oov_token),
            continuing_subword_prefix=to_letters.normalize_str(tokenizer.suffix_indicator),
            max_input_chars_per_word=_MAX_BYTES_PER_WORD,
        )
    )
    result.normalizer = _word_piece_normalizer(
        strip_accents=tokenizer.strip_accents, split_on_cjk=tokenizer.split_on_cjk, lowercase=tokenizer.lowercase
    )
    result.pre_tokenizer = pre_tokenizers.Split(to_letters.normalize_str(_MARK), "removed")
    result.decoder = decoders.Sequence([decoders.WordPiece(tokenizer.suffix_indicator), decoders.ByteLevel()])
    if tokenizer.special_tokens_in_strings:
        special = [*tokenizer.special_tokens, *(tokenizer.get_config()["special_tokens"] or ())]
        result.add_tokens([AddedToken(token, special=True, normalized=False) for token in sorted(set(special))])
    return result


def _word_piece_normalizer(*, strip_accents: bool, split_on_cjk: bool, lowercase: bool) -> normalizers.Normalizer:
    own_word = f"[{_PUNCTUATION}{_CJK if split_on_cjk else ''}]"
    steps: list[normalizers.Normalizer] = []
    if strip_accents:
        steps += [normalizers.NFD(), normalizers.Replace(Regex(r"\p{Mn}"), "")]
    steps += [
        # Not at the very start: tokenizers loses count of the letters where it inserts before the first one.
        normalizers.Replace(Regex(rf"(?!\A)(?={own_word})|(?<={own_word})"), _MARK),
        normalizers.Replace(Regex(_BLANK), _MARK),
    ]
    if lowercase:
        steps += [normalizers.NFKD(), normalizers.Lowercase()]
        steps += [normalizers.Replace(letter, folded) for letter, folded in _FOLDS.items()]
        steps += [normalizers.NFKC(), normalizers.Replace(Regex(_IGNORABLE), "")]
    return normalizers.Sequence([*steps, normalizers.ByteLevel()])


def _byte_pair(tokenizer: Any, *, in_tensorflow: bool) -> Tokenizer:
    if not tokenizer.vocabulary:
        raise TokenizerError("This byte-pair tokenizer has no vocabulary: set it before converting.")
    if not in_tensorflow:
        # In plain Python KerasHub runs a Hugging Face tokenizer itself.
        return Tokenizer.from_str(tokenizer._tokenizer.to_str())
    rules = (str(merge).split(" ") for merge in tokenizer.merges if "#version:" not in str(merge))
    merges = [(left, right) for left, right in rules]
    result = Tokenizer(models.BPE(vocab=dict(tokenizer.vocabulary), merges=merges))
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(" ")] if tokenizer.add_prefix_space else []
    steps.append(normalizers.Replace(Regex(rf" (?=[^{_ASCII_SPACES}{_SPACES}])"), f"{_SIX} "))
    result.normalizer = normalizers.Sequence(steps)
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.Split(Regex(_LAST_SPACE), "isolated"),
            pre_tokenizers.Split(Regex(rf"\A{_SIX}\z"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False) for token in sorted(tokenizer.unsplittable_tokens or ())
    ]
    result.add_tokens(special)
    return result


def _sentence_piece(tokenizer: Any, *, causal: bool) -> Tokenizer:
    if tokenizer.proto is None:
        raise TokenizerError("This SentencePiece tokenizer has no model: set it before converting.")
    if tokenizer.add_bos or tokenizer.add_eos:
        raise TokenizerError(
            "This SentencePiece tokenizer adds begin and end tokens itself (add_bos or add_eos), which is not "
            "supported: use a preprocessor that adds them."
        )
    return from_sentencepiece(bytes(tokenizer.proto), causal=causal)
