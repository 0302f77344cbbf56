"""Reading tokenizers that stand in files: ``tokenizer.json``, ``vocab.txt`` and KerasHub's preset folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgelm.errors import TokenizerError
from edgelm_converters.frameworks import import_keras, import_keras_hub
from edgelm_converters.tokenizer_keras_hub import to_hugging_face

__all__ = ["read_folder", "read_tokenizer_json", "read_vocabulary"]

_FILES = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PRESET_LENGTH = 512  # what KerasHub's preprocessors take where none is given


def read_folder(path: Path, read: Callable[[Path], Tokenizer]) -> Tokenizer:
    """Read the tokenizer in a folder: a KerasHub preset, or whichever known file is there.

    Args:
        path: The folder.
        read: Reads one file.

    Raises:
        TokenizerError: There is none.
    """
    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    if found is None:
        raise TokenizerError(f"The folder {path} holds no tokenizer: none of {', '.join(_FILES)} is in it.")
    if found.suffix == ".json" and "class_name" in _load_json(found):
        return _read_preset(path)
    return read(found)


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Read a Hugging Face ``tokenizer.json``.

    Raises:
        TokenizerError: It is another kind of JSON file, or damaged.
        OSError: It cannot be read.
    """
    data = _load_json(path)
    if "class_name" in data:
        raise TokenizerError(f"{path} is part of a KerasHub preset: give the folder {path.parent}.")
    if "model" not in data:
        raise TokenizerError(
            f"{path} is not a tokenizer.json of Hugging Face (it has no 'model'): vocab.json and tokenizer_config.json "
            "do not hold a whole tokenizer."
        )
    try:
        return Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # tokenizers raises Exception itself, and nothing narrower
        raise TokenizerError(f"The tokenizer {path} is damaged or of a newer format ({error}).") from error


def read_vocabulary(path: Path) -> Tokenizer:
    """Read a WordPiece vocabulary, one piece a line, as BERT's original tokenizer uses it.

    Case is folded, and accents are dropped, where ``do_lower_case`` in a ``tokenizer_config.json`` beside it says so;
    without one, where no piece but the special tokens has a capital letter.

    Raises:
        TokenizerError: It is not UTF-8, or has no ``[UNK]``.
        OSError: It cannot be read.
    """
    try:
        pieces = [line.rstrip("\r") for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"The vocabulary {path} is not UTF-8 text (byte {error.start}): it is damaged.") from error
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if "[UNK]" not in vocabulary:
        raise TokenizerError(f"{path} is not a WordPiece vocabulary: no line of it is '[UNK]'.")
    result = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a piece
    result.normalizer = normalizers.BertNormalizer(lowercase=_folds_case(path, pieces))
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.decoder = decoders.WordPiece()
    result.add_special_tokens([piece for piece in _SPECIAL if piece in vocabulary])
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        result.post_processor = processors.BertProcessing(
            ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
        )
    return result


def _folds_case(path: Path, pieces: list[str]) -> bool:
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        said = _load_json(config).get("do_lower_case")
        if said is not None:
            return bool(said)
    return all(piece == piece.lower() for piece in pieces if not (piece.startswith("[") and piece.endswith("]")))


def _read_preset(folder: Path) -> Tokenizer:
    """Read a KerasHub preset, with the length that its preprocessor has; a language model's has none."""
    import_keras_hub()
    config = _load_json(folder / "tokenizer.json")
    if str(config.get("module", "")).split(".")[0] != "keras_hub":
        raise TokenizerError(f"{folder} is not a KerasHub preset: its tokenizer is {config.get('class_name')!r}.")
    try:
        tokenizer = import_keras().saving.deserialize_keras_object(config)
        tokenizer.load_assets(str(folder / "assets" / "tokenizer"))
    except (OSError, TypeError, ValueError, ImportError, AttributeError, RuntimeError) as error:
        raise TokenizerError(f"The KerasHub preset {folder} is damaged or incomplete ({error}).") from error
    preprocessor = folder / "preprocessor.json"
    saved = _load_json(preprocessor) if preprocessor.is_file() else {}
    return to_hugging_face(
        tokenizer,
        max_length=int(saved.get("config", {}).get("sequence_length", _PRESET_LENGTH)),
        causal=str(saved.get("class_name", "")).endswith("CausalLMPreprocessor"),
    )


def _load_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}): it is damaged, or another kind of file.") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} is not a tokenizer: it holds a {type(data).__name__}, not an object.")
    return data
