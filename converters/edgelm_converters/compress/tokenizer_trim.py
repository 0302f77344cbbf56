"""A tokenizer with fewer tokens: its ``tokenizer.json`` rewritten, every id in it renumbered.

Ids stand in the model's vocabulary, the added tokens, the post-processor and the padding. Normalisers, pre-tokenizers and
decoders hold texts alone, and go over as they are. What this module does not know is refused: an id that was overlooked would
give a model another token in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer

from edgelm.errors import TokenizerError

__all__ = ["MODEL_KEYS", "fixed_ids", "read_json", "trim_tokenizer", "unknown_id"]

# What the models of a tokenizer.json hold, as tokenizers 0.20 to 0.23 write them.
MODEL_KEYS = {
    "BPE": {
        "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
        "ignore_merges", "vocab", "merges",
    },
    "Unigram": {"type", "unk_id", "vocab", "byte_fallback"},
    "WordLevel": {"type", "vocab", "unk_token"},
    "WordPiece": {"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"},
}  # fmt: skip
_FILE_KEYS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model",
}  # fmt: skip
_PADDING_KEYS = {"strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"}
_REMEDY = "keep the whole vocabulary, or write the tokenizer another way"

Json = dict[str, Any]


def read_json(tokenizer: Tokenizer) -> Json:
    """Return the content of a tokenizer's ``tokenizer.json``.

    Raises:
        TokenizerError: There is something in it whose ids are not known here; the message names it.
    """
    data: Json = json.loads(tokenizer.to_str())
    model = data["model"]
    kind = model.get("type")
    if kind not in MODEL_KEYS:
        raise TokenizerError(
            f"A tokenizer with the model {kind!r} cannot be trimmed (only {', '.join(MODEL_KEYS)} can): {_REMEDY}."
        )
    _known("the file", data, _FILE_KEYS)
    _known(f"the {kind} model", model, MODEL_KEYS[kind])
    _known("the padding", data["padding"] or {}, _PADDING_KEYS)
    if kind == "BPE":
        for key, why in (
            ("dropout", "it gives a text other tokens each time"),
            ("continuing_subword_prefix", "its merges are of pieces that are spelled otherwise than the text"),
            ("end_of_word_suffix", "its merges are of pieces that are spelled otherwise than the text"),
        ):
            if model.get(key):
                raise TokenizerError(
                    f"A BPE tokenizer with {key}={model[key]!r} cannot be trimmed, as {why}: {_REMEDY}."
                )
    _post_processor(data["post_processor"], lambda index: index)
    return data


def fixed_ids(data: Json) -> set[int]:
    """Return the ids that a tokenizer names outside of its texts: added tokens, the post-processor's, padding, unknown."""
    found = {int(token["id"]) for token in data["added_tokens"]}

    def note(index: int) -> int:
        found.add(index)
        return index

    _post_processor(data["post_processor"], note)
    if data["padding"]:
        found.add(int(data["padding"]["pad_id"]))
    unknown = unknown_id(data)
    return found if unknown is None else found | {unknown}


def unknown_id(data: Json) -> int | None:
    """Return the id of what a tokenizer cannot write; None where there is none."""
    model = data["model"]
    found = model["unk_id"] if model["type"] == "Unigram" else model["vocab"].get(model["unk_token"])
    return None if found is None else int(found)


def trim_tokenizer(data: Json, ids: Mapping[int, int]) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json`` with the tokens in `ids` alone.

    Merges stay in order, all whose two parts and whose result stay.

    Args:
        data: As `read_json` returned it; it is not changed.
        ids: New ids by old ones: those of :func:`fixed_ids` at least, in the old order.

    Raises:
        TokenizerError: The `tokenizers` package gives a token another id than it should have.
    """
    added = [{**token, "id": ids[int(token["id"])]} for token in data["added_tokens"]]
    padding = data["padding"] and {**data["padding"], "pad_id": ids[int(data["padding"]["pad_id"])]}
    trimmed = {
        **data,
        "added_tokens": added,
        "padding": padding,
        "post_processor": _post_processor(data["post_processor"], lambda index: ids[index]),
        "model": _model(data["model"], ids),
    }
    text = json.dumps(trimmed, ensure_ascii=False)
    result: Tokenizer = Tokenizer.from_str(text)
    expected = _vocabulary(trimmed["model"]) | {token["content"]: token["id"] for token in added}
    found = result.get_vocab()
    if found != expected:
        token = min(found.items() ^ expected.items())[0]
        raise TokenizerError(
            f"The trimmed tokenizer gives the token {token!r} the id {found.get(token)}, not {expected.get(token)}: its added "
            f"tokens do not follow its vocabulary; {_REMEDY}."
        )
    return result


def _model(model: Json, ids: Mapping[int, int]) -> Json:
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        kept = [entry for index, entry in enumerate(model["vocab"]) if index in ids]
        return {**model, "vocab": kept, "unk_id": None if unknown is None else ids[unknown]}
    vocabulary = {name: ids[index] for name, index in model["vocab"].items() if index in ids}
    if model["type"] != "BPE":
        return {**model, "vocab": vocabulary}
    merges = [
        (left, right)
        for left, right in model["merges"]
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    return {**model, "vocab": vocabulary, "merges": merges}


def _vocabulary(model: Json) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {name: index for index, (name, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _post_processor(processor: Json | None, change: Callable[[int], int]) -> Json | None:
    """Return a post-processor with every id put through `change`.

    Raises:
        TokenizerError: It is of a kind that is not known.
    """
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_post_processor(part, change) for part in processor["processors"]]}
    if kind == "ByteLevel":
        return processor
    if kind == "TemplateProcessing":
        special = {
            name: {**entry, "ids": [change(int(index)) for index in entry["ids"]]}
            for name, entry in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        changed = {name: [processor[name][0], change(int(processor[name][1]))] for name in ("sep", "cls")}
        return {**processor, **changed}
    raise TokenizerError(f"A tokenizer with the post-processor {kind!r} cannot be trimmed: {_REMEDY}.")


def _known(where: str, found: Json, names: set[str]) -> None:
    for key in found:
        if key not in names:
            raise TokenizerError(
                f"The tokenizer cannot be trimmed: {where} has {key!r}, and whether it holds ids is not known; {_REMEDY}."
            )
