"""A language model as a ``.litertlm`` file: the TFLite file, its tokenizer and settings, as Google's LiteRT-LM opens it.

What LiteRT-LM 0.18 needs, found by trying and proved by the tests:

- Signatures ``decode`` and ``prefill_{N}`` for one or several N. It cuts a prompt into those, fills up the last one with
  token 0 at position 0, gives the last token of the prompt to ``decode``, and refuses a call that would not fit in the cache.
- Inputs ``tokens``, ``input_pos`` and ``kv_cache_k_{i}``, ``kv_cache_v_{i}``; the caches of any order of axes, the same in
  every signature of its own. A graph that has no ``mask`` computes its own.
- Further signatures do not disturb it as long as their names do not begin with ``prefill``, but it loads them too. With
  twelve signatures instead of three, a model with 15 MB of int8 weights opens in 0.12 s instead of 0.07 and takes 9 MB more;
  where it is told not to write its file of packed weights (``cache_dir=":nocache"``), 105 MB more. So a file of its own, with
  one cache and no ``verify``, is worth writing.
- At least one stop token: without, no session can be made. It adds the start token itself, once, in front of the first
  prompt.
- On the CPU it has the sampler TOP_P alone ("Sampler type … not implemented yet" for GREEDY and TOP_K), with a limit k: with
  k = 1 it takes the likeliest token.
- It renders templates with minijinja, knows neither ``bos_token`` nor ``eos_token``, and gives a message's content as a list of
  parts, where the templates that models come with expect a string: a few lines in front of them make up for both.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgelm.bundle.manifest import GenerationRecord
from edgelm.errors import ConversionError, MissingPackageError

__all__ = ["write_litertlm"]


# In front of every template: the content of each message as one string.
_STRINGS = """\
{%- set edgelm = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set joined = namespace(text='') -%}
{%- if message.content is string -%}
{%- set joined.text = message.content -%}
{%- else -%}
{%- for part in message.content -%}{%- set joined.text = joined.text ~ part.text -%}{%- endfor -%}
{%- endif -%}
{%- set edgelm.messages = edgelm.messages + [{'role': message.role, 'content': joined.text}] -%}
{%- endfor -%}
{%- set messages = edgelm.messages -%}
"""
_PLAIN = "{%- for message in messages -%}{{ message.content }}{%- endfor -%}"


def write_litertlm(
    path: Path, *, tflite: Path, tokenizer: Path, generation: GenerationRecord, chat_template: str | None
) -> None:
    """Write a ``.litertlm`` file.

    Args:
        path: The file to write; one that exists is replaced.
        tflite: Of `edgelm_converters.emit.tflite_decoder.emit_tflite_decoder`.
        tokenizer: A Hugging Face ``tokenizer.json``.
        generation: Context length, start and stop tokens, and how to sample: the likeliest token where it says nothing.
        chat_template: Jinja source that turns messages into a prompt. None: the messages are the prompt, as they are.

    Raises:
        ConversionError: There is no stop token, the tokenizer does not know it, or the start token has no text.
        MissingPackageError: The package litert-lm-builder is not installed.
    """
    try:
        import litert_lm_builder as builder
    except ModuleNotFoundError as error:
        if error.name != "litert_lm_builder":
            raise
        raise MissingPackageError("litert_lm_builder", extra="convert", what="target 'litertlm'") from error
    template = _template(generation, tokenizer, chat_template)
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / "metadata.pb"  # the builder takes files only
        metadata.write_bytes(_metadata(generation, template).SerializeToString())
        file = builder.LitertLmFileBuilder()
        file.add_system_metadata(builder.Metadata("Authors", "edgelm", builder.DType.STRING))
        file.add_llm_metadata(str(metadata), supports_thinking=False, supports_function_calling=False)
        own = Path(folder) / "tokenizer.json"
        own.write_text(_with_start(Tokenizer.from_file(str(tokenizer)), generation), encoding="utf-8")
        file.add_hf_tokenizer(str(own))
        # Otherwise LiteRT-LM computes in float16 where it can, which nobody verified. As further metadata, since the builder
        # prints what it is given as `prefer_activation_type`.
        exact = builder.Metadata("prefer_activation_type", "fp32", builder.DType.STRING)
        file.add_tflite_model(str(tflite), builder.TfLiteModelType.PREFILL_DECODE, additional_metadata=[exact])
        with path.open("wb") as stream:
            file.build(stream)


def _template(generation: GenerationRecord, tokenizer: Path, chat_template: str | None) -> str:
    """Return the template with what LiteRT-LM does not give it.

    Raises:
        ConversionError: There is no stop token, or the tokenizer does not know it.
    """
    if not generation.stop_ids:
        raise ConversionError(
            "LiteRT-LM opens no model without a stop token, and this one has none: name one, or leave out --to litertlm."
        )
    stop = Tokenizer.from_file(str(tokenizer)).id_to_token(generation.stop_ids[0])
    if stop is None:
        raise ConversionError(
            f"The stop token {generation.stop_ids[0]} is not in {tokenizer.name}: the tokenizer and the model do not belong "
            "together."
        )
    # LiteRT-LM puts the start token in front by itself.
    names = f"{{%- set bos_token = '' -%}}\n{{%- set eos_token = {json.dumps(stop)} -%}}\n"
    return names + _STRINGS + (_PLAIN if chat_template is None else chat_template)


def _with_start(tokenizer: Tokenizer, generation: GenerationRecord) -> str:
    """Return the tokenizer as JSON, with a decoder that writes the start token out.

    LiteRT-LM finds the start token by what the decoder makes of it. Where that leaves control pieces out, as those of
    SentencePiece, LiteRT-LM puts nothing in front of a prompt, and says nothing.

    Raises:
        ConversionError: The decoder writes something else for the start token.
    """
    start = generation.start_id
    data = json.loads(tokenizer.to_str())
    if start is None or _writes_out(tokenizer, start):
        return tokenizer.to_str()
    spared = f"(?!\\A{re.escape(tokenizer.id_to_token(start) or '')}\\z)"
    for step in (data.get("decoder") or {}).get("decoders", ()):
        if step["type"] == "Replace" and step["content"] == "" and "Regex" in step["pattern"]:
            step["pattern"]["Regex"] = spared + step["pattern"]["Regex"]
    text = json.dumps(data, ensure_ascii=False)
    if not _writes_out(Tokenizer.from_str(text), start):
        raise ConversionError(
            f"LiteRT-LM finds the start token {tokenizer.id_to_token(start)!r} by its text, and the tokenizer's decoder writes "
            "another one: leave out --to litertlm."
        )
    return text


def _writes_out(tokenizer: Tokenizer, token: int) -> bool:
    return bool(tokenizer.decode([token], skip_special_tokens=False) == tokenizer.id_to_token(token))


def _metadata(generation: GenerationRecord, template: str) -> Any:
    """Return LiteRT-LM's ``LlmMetadata``."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    metadata = llm_metadata_pb2.LlmMetadata()
    metadata.max_num_tokens = generation.context_length
    metadata.llm_model_type.generic_model.SetInParent()
    if generation.start_id is not None:
        metadata.start_token.token_ids.ids.append(generation.start_id)
    for stop in generation.stop_ids:
        metadata.stop_tokens.add().token_ids.ids.append(stop)
    metadata.jinja_prompt_template = template
    sampler = metadata.sampler_params
    sampler.type = sampler_params_pb2.SamplerParameters.TOP_P
    sampler.k, sampler.p, sampler.temperature = 1, 1.0, 1.0
    if generation.temperature is not None:
        sampler.k = generation.top_k or generation.vocabulary_size
        sampler.p = 1.0 if generation.top_p is None else generation.top_p
        sampler.temperature = generation.temperature
    return metadata
