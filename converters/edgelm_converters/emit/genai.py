"""The two files that make a folder with ``model.onnx`` and ``tokenizer.json`` one that ONNX Runtime GenAI opens.

``genai_config.json`` says what the graph's inputs and outputs are called and how to generate; ``tokenizer_config.json`` which
of its own tokenizers reads ``tokenizer.json``. Checked with onnxruntime-genai 0.18.

GenAI reads a tokenizer with code of its own (onnxruntime-extensions), which knows fewer steps than Hugging Face's. On edgelm's
45 probe texts, of which half are there to be difficult, its ids are the same for 42 with byte pairs (GPT-2, Llama 3, Qwen), 44
with the SentencePiece models of Llama, Mistral and Phi-3, 40 with Gemma's; what differs has runs of spaces or combining
marks. It adds a start token only after ``Tokenizer.update_options(add_special_tokens="true")``; a chat template writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm.bundle.manifest import GenerationRecord
from edgelm.errors import ConversionError
from edgelm_converters.emit.onnx_decoder_blocks import cached_width
from edgelm_converters.spec import TransformerSpec

__all__ = ["write_genai"]

_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_BYTE_LEVEL, _PIECES, _UNIGRAM = "GPT2Tokenizer", "GemmaTokenizer", "T5Tokenizer"


def write_genai(
    folder: Path, spec: TransformerSpec, generation: GenerationRecord, *, context_length: int
) -> tuple[str, ...]:
    """Write ``genai_config.json`` and ``tokenizer_config.json`` beside ``model.onnx`` and ``tokenizer.json``.

    Args:
        folder: Where they are; the chat template that `generation` names is there too.
        spec: The model, as it was given to `emit_onnx_decoder`.
        generation: Start and stop tokens, and the sampler.
        context_length: The most positions, prompt and answer together.

    Returns:
        What a user of GenAI should know: where it has no tokenizer for the model's, it takes ids alone.

    Raises:
        ConversionError: ``tokenizer.json`` or the chat template cannot be read.
    """
    _write(folder / "genai_config.json", _config(spec, generation, context_length))
    tokenizer = _read_json(folder / _TOKENIZER)
    kind = _tokenizer_class(tokenizer)
    if kind is None:
        model = tokenizer.get("model", {}).get("type")
        return (
            f"ONNX Runtime GenAI has no tokenizer for {model} models: give it ids, and turn its ids into text yourself.",
        )
    settings: dict[str, Any] = {"tokenizer_class": kind, "model_max_length": context_length}
    start = _piece(tokenizer, generation.start_id)
    end = _piece(tokenizer, next(iter(generation.stop_ids), None))
    settings |= {} if start is None else {"bos_token": start}
    settings |= {} if end is None else {"eos_token": end}
    settings |= {"add_bos_token": start is not None, "add_eos_token": False}
    if generation.chat_template is not None:
        settings["chat_template"] = _read_text(folder / generation.chat_template)
    _write(folder / "tokenizer_config.json", settings)
    return ()


def _config(spec: TransformerSpec, generation: GenerationRecord, context_length: int) -> dict[str, Any]:
    layers = spec.decoder.layers
    attention = layers[0].attention
    stops = list(generation.stop_ids)
    samples = any(value is not None for value in (generation.temperature, generation.top_k, generation.top_p))
    search: dict[str, Any] = {
        "do_sample": samples,
        "max_length": context_length,
        "min_length": 0,
        "num_beams": 1,
        # Keys and values of the whole context, updated in place; GenAI copies them at each token otherwise.
        "past_present_share_buffer": True,
    }
    for name in ("temperature", "top_k", "top_p"):
        value = getattr(generation, name)
        if value is not None:
            search[name] = value
    model: dict[str, Any] = {
        # Any decoder; the types that name a family differ in what else they feed.
        "type": "decoder",
        "vocab_size": spec.vocabulary_size,
        "context_length": context_length,
        "pad_token_id": stops[0] if stops else 0,  # only batches of several lengths are filled up
        "eos_token_id": stops,
        "decoder": {
            "filename": _MODEL,
            # As edgelm's own adapter: threads that spin take twice the processor time where cores are shared.
            "session_options": {"session.intra_op.allow_spinning": "0", "provider_options": []},
            "head_size": cached_width(attention),
            "hidden_size": spec.width,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads,
            "num_hidden_layers": len(layers),
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    if generation.start_id is not None:
        model["bos_token_id"] = generation.start_id
    return {"model": model, "search": search}


def _tokenizer_class(tokenizer: dict[str, Any]) -> str | None:
    """Return the class under which GenAI reads a tokenizer best, None where it cannot.

    The class decides how pieces are joined and what is a space; with another one than here GenAI opens the file as well,
    and its ids are wrong (Gemma's under LlamaTokenizer: 6 texts of 45 right).
    """
    kind = tokenizer.get("model", {}).get("type")
    if kind == "Unigram":
        return _UNIGRAM
    if kind != "BPE":
        return None
    return _BYTE_LEVEL if '"ByteLevel"' in json.dumps(tokenizer.get("pre_tokenizer")) else _PIECES


def _piece(tokenizer: dict[str, Any], index: int | None) -> str | None:
    """Return the text of a token, None where there is no such token."""
    for token in tokenizer.get("added_tokens") or ():
        if token["id"] == index:
            return str(token["content"])
    vocabulary = tokenizer["model"]["vocab"]  # id by text; of a Unigram model, texts with their scores
    if isinstance(vocabulary, dict):
        return next((text for text, known in vocabulary.items() if known == index), None)
    return str(vocabulary[index][0]) if index is not None and 0 <= index < len(vocabulary) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise ConversionError(f"{path.name} is not valid JSON ({error}): write the tokenizer again.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path.name} holds no tokenizer: write it with Tokenizer.save.")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{path.name} cannot be read ({error}): ONNX Runtime GenAI needs it beside {_MODEL}."
        ) from error


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
