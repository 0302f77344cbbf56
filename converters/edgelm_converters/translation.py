"""What is needed to write an encoder-decoder: its lengths, and the tokens that it begins and ends with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgelm.bundle import AudioRecord, TokenizerRecord, TranslationRecord
from edgelm.errors import InputError, TokenizerError
from edgelm_converters.recipes import Recipe
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TranslationModel", "choose_lengths", "source_buckets", "translation_record"]

_DEFAULT_LENGTH = 128
_BUCKETS = (16, 32, 64, 128, 256, 512)
_STARTS = ("[START]", "[start]", "<start>", "<s>", "<bos>", "[BOS]", "[CLS]")
_ENDS = ("[END]", "[end]", "<end>", "</s>", "<eos>", "[EOS]", "[SEP]")
# OpenAI's multilingual models; https://github.com/openai/whisper, tokenizer.py, names them.
_WHISPER_PREFIX = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_WHISPER_END = "<|endoftext|>"
_WHISPER_AUDIO = {"sampling_rate": 16_000, "window": 400, "hop": 160, "seconds": 30}
_FRAMES_A_SECOND = 100


@dataclass(frozen=True)
class TranslationModel:
    """All that is needed to write an encoder-decoder's files.

    Attributes:
        spec: The model.
        recipe: How its weights are stored.
        record: How it is driven.
        tokenizer: Of the source, and of the target where that has none of its own; None where the artifacts take ids.
        target_tokenizer: None where it is the same.
    """

    spec: TransformerSpec
    recipe: Recipe
    record: TranslationRecord
    tokenizer: Tokenizer | None
    target_tokenizer: Tokenizer | None

    @property
    def written_with(self) -> Tokenizer | None:
        """The tokenizer of the answers."""
        return self.target_tokenizer or self.tokenizer


def choose_lengths(spec: TransformerSpec, asked: int | None) -> tuple[int, int, tuple[str, ...]]:
    """Return the most source tokens (or frames) and the most positions of an answer, and notes where they were chosen.

    Raises:
        InputError: The model has fewer positions than were asked for.
    """
    source = spec.source
    bounds = (None if source is None else source.max_length, spec.max_length)
    if source is not None and source.audio is not None:
        frames = 2 * len(source.audio.position)
        target = _bounded(asked, spec.max_length)
        return (
            frames,
            target,
            () if asked else (f"An answer has at most {target} tokens; --sequence-length sets another.",),
        )
    lengths = [_bounded(asked, bound) for bound in bounds]
    note = f"A source has at most {lengths[0]} tokens, an answer {lengths[1]}; --sequence-length sets another length."
    return lengths[0], lengths[1], () if asked else (note,)


def _bounded(asked: int | None, bound: int | None) -> int:
    if asked is not None and bound is not None and asked > bound:
        raise InputError(f"--sequence-length {asked} is more positions than the model has: {bound}.")
    if asked is not None and asked < 2:
        raise InputError(f"--sequence-length {asked} leaves no room for an answer: give at least 2.")
    return asked or min(_DEFAULT_LENGTH, bound or _DEFAULT_LENGTH)


def source_buckets(model: TranslationModel) -> tuple[int, ...]:
    """Return the source lengths that a TFLite file has signatures for, ascending; a model that hears has one."""
    longest = model.record.source_length
    if model.record.audio is not None:
        return (longest,)
    return (*(length for length in _BUCKETS if length < longest), longest)


def translation_record(
    spec: TransformerSpec,
    source: Source,
    tokenizer: Tokenizer | None,
    target: TokenizerRecord | None,
    written_with: Tokenizer | None,
    *,
    lengths: tuple[int, int],
) -> TranslationRecord:
    """Return how the model is driven: by its family, its tokenizers, and the preprocessor that it carries.

    Args:
        spec: The model.
        source: What it was read from.
        tokenizer: Of the source; None where it takes ids or audio.
        target: The manifest's entry of another tokenizer for answers; None where there is none.
        written_with: The tokenizer of answers.
        lengths: As `choose_lengths` gives them.

    Raises:
        TokenizerError: Nothing says which token an answer begins or ends with.
    """
    prefix, suffix, start, stop, padding = _by_family(spec, source, tokenizer, written_with)
    audio = None
    if spec.source is not None and spec.source.audio is not None:
        bands = int(spec.source.audio.kernels[0].shape[1])
        audio = AudioRecord(**{**_WHISPER_AUDIO, "seconds": lengths[0] // _FRAMES_A_SECOND}, bands=bands)
    return TranslationRecord(
        source_length=lengths[0],
        target_length=lengths[1],
        vocabulary_size=spec.vocabulary_size,
        source_prefix=prefix,
        source_suffix=suffix,
        target_prefix=start,
        stop_ids=stop,
        padding_id=padding,
        audio=audio,
        target_tokenizer=target,
    )


Ids = tuple[int, ...]


def _by_family(
    spec: TransformerSpec, source: Source, tokenizer: Tokenizer | None, written_with: Tokenizer | None
) -> tuple[Ids, Ids, Ids, Ids, int]:
    """Return the tokens before and after a source, those that an answer begins with, those that end it, and the padding."""
    hub = getattr(source.preprocessor, "tokenizer", source.preprocessor)
    known = {name: getattr(hub, name, None) for name in ("start_token_id", "end_token_id", "pad_token_id")}

    def token(kind: str, names: Iterable[str], used: Tokenizer | None, default: int | None = None) -> int:
        found = known.get(kind)
        if found is None and used is not None:
            found = next((used.token_to_id(name) for name in names if used.token_to_id(name) is not None), None)
        if found is None:
            found = default
        if found is None:
            raise TokenizerError(
                f"Nothing says which token an answer {'begins' if kind.startswith('start') else 'ends'} with: give a "
                f"tokenizer that has one of {', '.join(names)} with --tokenizer (or --target-tokenizer)."
            )
        return int(found)

    if spec.family == "whisper":
        start = _whisper_start(written_with)
        end = token("end_token_id", (_WHISPER_END,), written_with, None)
        return (), (), start, (end,), end
    if spec.family == "t5":
        end, pad = token("end_token_id", ("</s>",), tokenizer, 1), token("pad_token_id", ("<pad>",), tokenizer, 0)
        return (
            (),
            (end,),
            (pad,),
            (end,),
            pad,
        )  # decoding begins with the padding: Raffel et al. 2020's code, and KerasHub's
    if spec.family == "bart":
        begin, end = token("start_token_id", ("<s>",), tokenizer, 0), token("end_token_id", ("</s>",), tokenizer, 2)
        pad = token("pad_token_id", ("<pad>",), tokenizer, 1)
        return (begin,), (end,), (end, begin), (end,), pad
    begin, end = token("start_token_id", _STARTS, written_with), token("end_token_id", _ENDS, written_with)
    ends = [tokenizer.token_to_id(name) for name in _ENDS] if tokenizer is not None else [end]
    suffix = next((found for found in ends if found is not None), None)
    return (), () if suffix is None else (int(suffix),), (begin,), (end,), 0


def _whisper_start(tokenizer: Tokenizer | None) -> Ids:
    if tokenizer is None:
        raise TokenizerError("A model that hears is told what to do in tokens: give its tokenizer with --tokenizer.")
    found = [tokenizer.token_to_id(name) for name in _WHISPER_PREFIX]
    return tuple(int(token) for token in found if token is not None)
