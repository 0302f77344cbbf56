"""Keras's ``TextVectorization`` layer as a Hugging Face tokenizer.

The layer turns strings into ids with TensorFlow's string operations, which no device has: so the strings become ids
beside the model. TensorFlow's operations know ASCII alone here: only A-Z get lower case, and only ASCII white space
separates words. Both are kept.
"""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from edgelm.errors import TokenizerError

__all__ = ["from_text_vectorization"]

_UNKNOWN = "[UNK]"
_STANDARDIZE = (None, "lower_and_strip_punctuation", "lower", "strip_punctuation")
_PUNCTUATION = r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~']"""
_SPLIT = {
    "whitespace": pre_tokenizers.Split(Regex(r"[ \t\n\x0b\f\r]+"), "removed"),
    "character": pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
}


def from_text_vectorization(layer: Any) -> Tokenizer:
    """Return a ``TextVectorization`` layer as a word-level tokenizer: 0 is padding, 1 any unknown word.

    A text is cut at the layer's ``output_sequence_length``, where it has one.

    Args:
        layer: A ``keras.layers.TextVectorization`` that has its vocabulary.

    Raises:
        TokenizerError: It has no vocabulary, gives no ids, or splits and standardises by a function of the user's.
    """
    config = layer.get_config()
    standardize, split = config["standardize"], config["split"]
    if standardize not in _STANDARDIZE or (split is not None and split not in _SPLIT):
        raise TokenizerError(
            f"The TextVectorization layer '{layer.name}' standardises or splits by a function of its own: turn the "
            "strings into ids yourself and give the model ids, or give a tokenizer.json file."
        )
    if config["output_mode"] != "int" or config["ngrams"] is not None:
        raise TokenizerError(
            f"The TextVectorization layer '{layer.name}' gives counts or n-grams, not a sequence of ids: set "
            "output_mode='int' and ngrams=None."
        )
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in layer.get_vocabulary()]
    if len(words) <= 2:
        raise TokenizerError(f"The TextVectorization layer '{layer.name}' has no vocabulary: call adapt() on it first.")
    result = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=_UNKNOWN))
    steps = _normalizers(standardize)
    if steps:
        result.normalizer = normalizers.Sequence(steps)
    if split is not None:
        result.pre_tokenizer = _SPLIT[split]
    if config["output_sequence_length"] is not None:
        result.enable_truncation(int(config["output_sequence_length"]))
    return result


def _normalizers(standardize: str | None) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if standardize in ("lower", "lower_and_strip_punctuation"):
        letters = zip(ascii_uppercase, ascii_lowercase, strict=True)
        steps += [normalizers.Replace(upper, lower) for upper, lower in letters]
    if standardize in ("strip_punctuation", "lower_and_strip_punctuation"):
        steps.append(normalizers.Replace(Regex(_PUNCTUATION), ""))
    return steps
