"""How a language model is driven: where a text begins, what ends an answer, how a conversation becomes a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm_runtimes.chat_template import ChatTemplate

from edgelm.bundle.manifest import GenerationRecord
from edgelm.errors import BundleError, InputError
from edgelm_converters.chat_templates import FORMATS, read_format
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.tokenizer_sentencepiece import control_name, special_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["find_chat_template", "generation_record"]

# What ends an answer in a conversation: never part of one, so that it may always stop there.
_TURN_ENDS = ("<end_of_turn>", "<|eot_id|>", "<|im_end|>", "<|end|>")
# What ends a text, where no KerasHub tokenizer says which of them it is.
_TEXT_ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]", "<|eos|>")
_INSTRUCT = re.compile(r"(?:^|[^a-z])(?:instruct|chat|it)(?:[^a-z]|$)")
_BESIDE = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_DEFAULT_TOP_K = 5  # what KerasHub samples with where nobody chose


def generation_record(
    source: Source,
    tokenizer: Tokenizer | None,
    spec: TransformerSpec,
    *,
    context_length: int,
    chat_template: str | None,
) -> GenerationRecord:
    """Return what a bundle's manifest says of generation.

    The stop tokens are those that KerasHub's ``generate`` stops at, the end of the text first, and every token of the
    vocabulary that ends a turn in a documented chat format. A sampler is recommended where the model was compiled with
    another one than KerasHub's own default.

    Args:
        source: The model, with its KerasHub preprocessor where it has one.
        tokenizer: The converted one; None where the bundle has none.
        spec: The model's spec.
        context_length: The most positions, prompt and answer together.
        chat_template: The template's file in the bundle; None where there is none.
    """
    start = tokenizer.encode("").ids[:1] if tokenizer is not None else []
    return GenerationRecord(
        context_length=context_length,
        vocabulary_size=spec.vocabulary_size,
        start_id=start[0] if start else None,
        stop_ids=_stop_ids(source, tokenizer, spec.vocabulary_size),
        chat_template=chat_template,
        **_sampling(getattr(source.model, "sampler", None)),
    )


def find_chat_template(
    source: Source, tokenizer: Tokenizer | None, given: str | Path | None, *, folder: Path | None = None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the Jinja template that turns messages into a prompt, and notes for the manifest.

    It is the one that is given; else one that stands in the model's preset folder; else, for a model whose name says that
    it was tuned to follow instructions, the documented format of its vocabulary. Where a template writes out a control
    piece of a SentencePiece vocabulary, it gets the name under which the converted tokenizer finds it.

    Args:
        source: The model.
        tokenizer: The converted one.
        given: The user's file: a Jinja template, or a JSON file with the key ``chat_template``.
        folder: The model's preset folder, where it came from one.

    Returns:
        The template, None where there is none; and what a reader of the manifest should know.

    Raises:
        InputError: The file cannot be read, holds no template, or is not valid Jinja.
    """
    if given is not None:
        return _for_tokenizer(_read_template(Path(given)), tokenizer), ()
    for path in (folder / name for name in _BESIDE) if folder is not None else ():
        if path.is_file() and (path.suffix != ".json" or _template_of(_load_json(path))):
            return _for_tokenizer(_read_template(path), tokenizer), (f"The chat template is that of {path.name}.",)
    name = _documented_format(source, tokenizer)
    if name is None:
        return None, ()
    if not _follows_instructions(source):
        return None, (
            f"The vocabulary has the chat format '{name}', but nothing says that the model was tuned to follow instructions: "
            "no chat template was written; give one with --chat-template.",
        )
    note = f"No chat template was given: the documented format '{name}' is used."
    return _for_tokenizer(read_format(name), tokenizer), (note,)


def _stop_ids(source: Source, tokenizer: Tokenizer | None, vocabulary_size: int) -> tuple[int, ...]:
    hub = getattr(source.preprocessor, "tokenizer", source.preprocessor)
    ends = [getattr(hub, name, None) for name in ("end_token_id", "end_token2_id")]
    if tokenizer is not None:
        if all(index is None for index in ends):
            ends += _ids(tokenizer, _TEXT_ENDS)
        ends += _ids(tokenizer, _TURN_ENDS)
    found = (int(index) for index in ends if index is not None)
    return tuple(dict.fromkeys(index for index in found if 0 <= index < vocabulary_size))


def _ids(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[int | None]:
    """Return the ids of those tokens that a vocabulary has, under any of the names that edgelm gives to control pieces."""
    names = (name(token) for token in tokens for name in (str, control_name, special_name))
    return [tokenizer.token_to_id(name) for name in names]


def _sampling(sampler: Any) -> dict[str, Any]:
    """Return what a KerasHub sampler does as temperature, top_k and top_p; nothing where it picks the likeliest."""
    kind = type(sampler).__name__
    if kind not in ("RandomSampler", "TopKSampler", "TopPSampler"):
        return {}
    temperature = float(sampler.temperature)
    top_k = getattr(sampler, "k", None)
    if kind == "TopKSampler" and top_k == _DEFAULT_TOP_K and temperature == 1.0:
        return {}
    return {
        "temperature": temperature,
        "top_k": None if top_k is None else int(top_k),
        "top_p": float(sampler.p) if kind == "TopPSampler" else None,
    }


def _documented_format(source: Source, tokenizer: Tokenizer | None) -> str | None:
    if tokenizer is None:
        return None
    hub = getattr(source.preprocessor, "tokenizer", source.preprocessor)
    for name, tokens in FORMATS.items():
        if tokens and all(tokenizer.token_to_id(token) is not None for token in tokens):
            return name
    return "mistral" if type(hub).__name__ in ("MistralTokenizer", "MistralTekkenTokenizer") else None


def _follows_instructions(source: Source) -> bool:
    """Return whether a model's name says so, as KerasHub names its presets (``gemma_instruct_2b_en``)."""
    names = (source.name.lower(), source.description.lower())
    return any(_INSTRUCT.search(name) for name in names)


def _read_template(path: Path) -> str:
    """Read a template, and check its syntax."""
    if path.suffix.lower() == ".json":
        text = _template_of(_load_json(path))
        if text is None:
            raise InputError(f"{path} holds no chat template (no key 'chat_template'): give a .jinja file.")
    else:
        text = _read_text(path)
    _check_syntax(text, path)
    return text


def _template_of(data: Any) -> str | None:
    """Return the template in a ``tokenizer_config.json`` or ``chat_template.json``; of several, the one named default."""
    found = data.get("chat_template") if isinstance(data, dict) else None
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _check_syntax(text: str, path: Path) -> None:
    """Let the device's own renderer read the template."""
    try:
        ChatTemplate(text, start="", stop="")
    except BundleError as error:
        raise InputError(f"The chat template {path} is not valid Jinja ({error.__cause__}).") from error


def _load_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): it holds no chat template.") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"The chat template {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The chat template {path} is not UTF-8 text (byte {error.start}).") from error


def _for_tokenizer(template: str, tokenizer: Tokenizer | None) -> str:
    """Give control pieces that a template writes out, such as ``<s>``, the name under which the tokenizer finds them."""
    if tokenizer is None:
        return template
    mark = special_name("")
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.content.startswith(mark):
            template = template.replace(token.content.removeprefix(mark), token.content)
    return template
