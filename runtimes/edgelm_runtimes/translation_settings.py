"""What can be asked of a translation: the arguments of `Session.translate`, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TypedDict

from edgelm.errors import InputError
from edgelm_runtimes.sampling import Sampling

__all__ = ["TranslateOptions", "TranslationSettings", "resolve_translation"]

# Each costs a cache and a row of every step, and far fewer are best (Koehn and Knowles 2017, https://arxiv.org/abs/1706.03872,
# section 3.6).
_MOST_BEAMS = 32


class TranslateOptions(TypedDict, total=False):
    """The keyword arguments of `Session.translate` and `Session.live_translation`. None, or leaving one out, takes the default.

    Attributes:
        beams: Answers that are looked for side by side; 1 takes the likeliest token each time. Of a file with fixed shapes, a
            number that it has.
        length_penalty: Answers are compared by the sum of their tokens' log-probabilities divided by
            ``tokens ** length_penalty``, the stop token counted: 1, the default, is the mean; 0 the sum, which likes short
            answers. This is the plain power form, not that of Wu et al. 2016.
        max_new_tokens: Tokens of an answer, at most; by default as many as the model has positions for.
        temperature: 0 takes the likeliest token; 1 where a filter is asked for. Only with one beam.
        top_k: Keep so many of the likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens that have this probability together; 1 keeps all.
        seed: Of the random numbers; each text begins with it. None takes fresh ones.
        deadline_ms: Milliseconds after which the call ends with what there is. Steps are not interrupted: none is begun that,
            taking as long as the last, would end later.
        cut: Whether the end of a source that is too long is left out, which the result says. Otherwise it is refused.
    """

    beams: int | None
    length_penalty: float | None
    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    deadline_ms: float | None
    cut: bool | None


@dataclass(frozen=True)
class TranslationSettings:
    """The arguments of one call, checked; `TranslateOptions` says what each is.

    Attributes:
        beams: At least 1.
        length_penalty: Any finite number.
        max_new_tokens: At least 1, and no more than there are positions for.
        sampling: How tokens are chosen with one beam.
        deadline_s: Seconds from the call on; None for no deadline.
        cut: Whether a source may be cut.
    """

    beams: int
    length_penalty: float
    max_new_tokens: int
    sampling: Sampling
    deadline_s: float | None
    cut: bool


def resolve_translation(
    room: int,
    row_counts: tuple[int, ...] | None,
    *,
    beams: int | None = None,
    length_penalty: float | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    deadline_ms: float | None = None,
    cut: bool | None = None,
) -> TranslationSettings:
    """Check the arguments of a translation, which are those of `TranslateOptions`.

    `room` is for how many tokens of an answer the model has positions, `row_counts` as `Seq2SeqProgram.row_counts`.

    Raises:
        InputError: A value is of the wrong type, out of its range, or does not go with another.
    """
    for name, value in (
        ("length_penalty", length_penalty), ("temperature", temperature), ("top_p", top_p), ("deadline_ms", deadline_ms),
    ):  # fmt: skip
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value)
        ):
            raise InputError(f"{name} is {value!r}, and has to be a number.")
    for name, count in (("beams", beams), ("max_new_tokens", max_new_tokens)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InputError(f"{name} is {count!r}, and has to be a whole number, 1 or more.")
    if deadline_ms is not None and deadline_ms <= 0:
        raise InputError(f"deadline_ms is {deadline_ms}, and has to be more than 0.")
    wanted = 1 if beams is None else beams
    if row_counts is not None and wanted not in row_counts:
        raise InputError(
            f"beams is {wanted}, and this file was made for {' or '.join(map(str, row_counts))}: take one of them, or use the "
            "bundle's ONNX file, where they are free."
        )
    if wanted > _MOST_BEAMS:
        raise InputError(f"beams is {wanted}, and has to be at most {_MOST_BEAMS}: more cost time and gain nothing.")
    if temperature is None:  # whoever asks for a filter wants chance
        temperature = 0.0 if (top_k, top_p) == (None, None) else 1.0
    sampling = Sampling(
        temperature=temperature,
        top_k=0 if top_k is None else top_k,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
    )
    if wanted > 1 and not sampling.greedy:
        raise InputError(
            f"temperature is {temperature} with {wanted} beams, which leave nothing to chance: take one of both."
        )
    return TranslationSettings(
        beams=wanted,
        length_penalty=1.0 if length_penalty is None else float(length_penalty),
        max_new_tokens=room if max_new_tokens is None else min(max_new_tokens, room),
        sampling=sampling,
        deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
        cut=bool(cut),
    )
