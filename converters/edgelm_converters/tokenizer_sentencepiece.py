"""A SentencePiece model as a Hugging Face tokenizer.

Both kinds are taken: unigram (the best path by score) and BPE (the pair with the best score first). The model's own
compiled normaliser goes over unchanged. It gives one id for a run of unknown characters, as SentencePiece does.

SentencePiece never finds a control piece such as ``[CLS]`` or ``<pad>`` in a text, where Hugging Face's models would.
So these pieces get a space before their name: a space cannot be part of a piece, for texts have ``▁`` in its place.
In a language model's tokenizer U+0001 stands before the name instead, and the name is a special token: a chat template
begins a prompt with it (``bos_token``), and no text that a person writes holds it.

Known to differ, and shown by :func:`edgelm_converters.tokenizer.check_tokenizer` where a text has it:

- unigram: paths of the same pieces in another order (55|5 and 5|55) tie, and SentencePiece's float32 sums break the tie
  where these float64 sums do not;
- two marks on one letter in an unusual order, and a user's own piece that the normaliser would change;
- a byte piece written out in the text (``<0x41>``);
- in a language model's tokenizer, a control piece with U+0001 written before it.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgelm.errors import MissingPackageError, TokenizerError

__all__ = ["control_name", "from_sentencepiece", "sentencepiece_processor", "special_name"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_HIDDEN = (_UNKNOWN, _CONTROL, _UNUSED)
_UNIGRAM, _BPE = 1, 2
_SPACE = "▁"
_SPECIAL_MARK = "\x01"
_ALL = 1 << 30


def from_sentencepiece(proto: bytes, *, causal: bool = False) -> Tokenizer:
    """Return a SentencePiece model as a Hugging Face tokenizer, which adds no start or end tokens.

    Args:
        proto: The content of a ``.model`` file.
        causal: Whether it is a language model's: its control pieces are then special tokens, which a chat template can
            name (:func:`special_name`).

    Raises:
        TokenizerError: It is not a SentencePiece model, or is of a kind that is not supported.
        MissingPackageError: ``sentencepiece`` is not installed.
    """
    model = _parse(proto)
    spec, trainer = model.normalizer_spec, model.trainer_spec
    if trainer.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise TokenizerError(
            "This SentencePiece model writes spaces in its own way (at the end of words, or not at all): unsupported."
        )
    name_of_control = special_name if causal else control_name
    names = [name_of_control(piece.piece) if piece.type in _HIDDEN else str(piece.piece) for piece in model.pieces]
    unknown = next((index for index, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None)
    if unknown is None:
        raise TokenizerError("This SentencePiece model has no unknown piece: it is damaged.")
    user_defined = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    if trainer.model_type == _UNIGRAM:
        scored = list(zip(names, _scores(model.pieces), strict=True))
        result = Tokenizer(models.Unigram(scored, unknown, trainer.byte_fallback))
    elif trainer.model_type == _BPE:
        result = Tokenizer(
            models.BPE(
                vocab={name: index for index, name in enumerate(names)},
                merges=_merges(model.pieces),
                unk_token=names[unknown],
                fuse_unk=True,
                ignore_merges=bool(user_defined),
                byte_fallback=trainer.byte_fallback,
            )
        )
        if user_defined:  # cut out before anything is merged, and taken whole
            result.pre_tokenizer = pre_tokenizers.Split(Regex(_alternatives(user_defined)), "isolated")
    else:
        raise TokenizerError(
            "This SentencePiece model splits into words or characters: only unigram and BPE are supported."
        )
    _set_normalizer(result, spec)
    _set_decoder(result, model, unknown=names[unknown])
    if causal:
        control = [name for name, piece in zip(names, model.pieces, strict=True) if piece.type == _CONTROL]
        result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    return result


def control_name(piece: str) -> str:
    """Return the name of a control or unknown piece in the converted vocabulary."""
    return f" {piece}"


def special_name(piece: str) -> str:
    """Return the name of a control or unknown piece in the vocabulary of a language model's tokenizer."""
    return f"{_SPECIAL_MARK}{piece}"


def sentencepiece_processor(proto: bytes) -> Any:
    """Return a ``sentencepiece.SentencePieceProcessor`` of a model.

    Raises:
        TokenizerError: It is not a SentencePiece model.
        MissingPackageError: ``sentencepiece`` is not installed.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise MissingPackageError("sentencepiece", extra="keras-hub", what="reading a SentencePiece model") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"This is not a SentencePiece model, or it is damaged ({error}).") from error


def _parse(proto: bytes) -> Any:
    """Return the message ``ModelProto``; sentencepiece itself says whether it is a whole model."""
    sentencepiece_processor(proto)
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(proto)


def _alternatives(pieces: list[str]) -> str:
    """Return an expression that finds any of the pieces, the longest first."""
    return "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True))


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Return the pairs that make a piece, those of the best piece first."""
    score = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    merges = []
    for piece, value in score.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in score and right in score:
                merges.append((-value, left, right))
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]


def _scores(pieces: Any) -> list[float]:
    """Return the score of each piece; a user's own piece gets one that lets it win wherever it stands in a text."""
    best = max((piece.score for piece in pieces if piece.type == _NORMAL), default=0.0)
    return [len(piece.piece.encode()) * best - 0.1 if piece.type == _USER_DEFINED else piece.score for piece in pieces]


def _set_normalizer(result: Tokenizer, spec: Any) -> None:
    """Set what comes before the model: the compiled normaliser, then the treatment of spaces."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        # Hugging Face takes what belongs together (a letter and its marks, "\r\n") as one, and looks its beginning up
        # alone: so the letter is composed, and the line end taken apart.
        steps += [normalizers.NFC(), normalizers.Replace("\r\n", "\n\n")]
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    result.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _set_decoder(result: Tokenizer, model: Any, *, unknown: str) -> None:
    """Set what turns pieces into text, as SentencePiece does: control pieces vanish, bytes are put together.

    The space in front goes where the normaliser put it there: one, or all where it takes away those of the text too.
    """
    spec, trainer = model.normalizer_spec, model.trainer_spec
    steps: list[decoders.Decoder] = [
        decoders.Replace(Regex(rf"\A{re.escape(unknown)}\z"), trainer.unk_surface.replace(" ", _SPACE)),
        decoders.Replace(Regex(rf"\A[ {_SPECIAL_MARK}].+\z"), ""),
        decoders.Replace(_SPACE, " "),
    ]
    if trainer.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if spec.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", _ALL, 0))
    elif spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    result.decoder = decoders.Sequence(steps)
