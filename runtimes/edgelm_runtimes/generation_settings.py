"""What can be asked of an answer: the arguments of `generate`, checked once, with the bundle's own advice filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, TypedDict

from edgelm.bundle import GenerationRecord, Manifest
from edgelm.errors import InputError
from edgelm_runtimes.prompt import Window, kept_from_start
from edgelm_runtimes.sampling import Sampling

__all__ = ["DEFAULT_NEW_TOKENS", "DraftSession", "GenerateOptions", "GenerationSettings", "Speculate", "resolve"]

# About 200 English words: an answer to most questions, and an end for a model that never stops by itself.
DEFAULT_NEW_TOKENS = 256

Speculate = Literal["off", "prompt-lookup"]


class DraftSession(Protocol):
    """A session with a smaller model, which guesses: what `edgelm.load` gives for its bundle."""

    @property
    def manifest(self) -> Manifest:
        """What its bundle says about itself."""
        ...


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `Session.generate` and `Session.chat`. None, or leaving one out, takes the default.

    Attributes:
        max_new_tokens: Tokens of the answer, at most; 256.
        temperature: 0 takes the likeliest token. The bundle's recommendation; where it has none, 1 if another filter is
            asked for or recommended, and 0 otherwise.
        top_k: Keep so many of the likeliest tokens; 0 keeps all. The bundle's recommendation.
        top_p: Keep the fewest likeliest tokens that have this probability together; 1 keeps all. The bundle's
            recommendation.
        min_p: Keep the tokens that are at least this share as likely as the likeliest; 0 keeps all.
        repetition_penalty: Makes tokens that were seen less likely; 1 does nothing.
        stop: A text, or several, at which the answer ends; it is not part of the answer.
        seed: Of the random numbers: the same seed gives the same answer where the same is computed. None takes fresh ones.
        deadline_ms: Milliseconds after which the answer ends with what there is. Steps are not interrupted: the one at hand
            may end a little later, and none is begun that, taking as long as the last, would.
        window: What to do with what is longer than the model's context. None: a prompt that is too long is refused, and an
            answer ends where the context does. Else the first tokens and the last ones are kept: ``keep_start`` keeps a
            quarter of the context from the start, ``keep_end`` only the token that begins a text, a number so many. An
            answer that reaches the end then goes on from half of the context, which is computed anew; the result says so.
        speculate: ``off``; ``prompt-lookup``, which guesses that the answer goes on as the text did before; or a session
            with a smaller model and the same tokenizer, which guesses. Guesses are checked together in one step, so that
            the answer is as likely as without them, and the same one where the likeliest tokens are taken. Where a runtime
            cannot keep the same tokens, it is refused, but for `inexact`.
        inexact: Guess also where the likeliest tokens may become others at near ties: with integer arithmetic in ONNX
            Runtime (`edgelm_runtimes.near_ties` has figures).
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    deadline_ms: float | None
    window: Window | None
    speculate: Speculate | DraftSession | None
    inexact: bool | None


@dataclass(frozen=True)
class GenerationSettings:
    """The arguments of one answer, checked.

    Attributes:
        max_new_tokens: At least 1.
        sampling: How tokens are chosen.
        stops: None of them empty.
        deadline_s: Seconds from the call on; None for no deadline.
        kept: Tokens that a window keeps from the start; None where there is no window.
        inexact: Whether guesses may change greedy tokens.
    """

    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    deadline_s: float | None
    kept: int | None
    inexact: bool


def resolve(
    record: GenerationRecord,
    context_length: int,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    deadline_ms: float | None = None,
    window: Window | None = None,
    inexact: bool | None = None,
) -> GenerationSettings:
    """Check the arguments of an answer, and fill in what the bundle recommends. See `GenerateOptions`.

    Raises:
        InputError: A value is of the wrong type or out of its range.
    """
    for name, value in (
        ("temperature", temperature), ("top_p", top_p), ("min_p", min_p), ("repetition_penalty", repetition_penalty),
        ("deadline_ms", deadline_ms),
    ):  # fmt: skip
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InputError(f"{name} is {value!r}, and has to be a number.")
    count = DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if not isinstance(count, int) or count < 1:
        raise InputError(f"max_new_tokens is {count!r}, and has to be a whole number, 1 or more.")
    if deadline_ms is not None and not (isfinite(deadline_ms) and deadline_ms > 0):
        raise InputError(f"deadline_ms is {deadline_ms}, and has to be more than 0.")
    top_k = record.top_k if top_k is None else top_k
    top_p = record.top_p if top_p is None else top_p
    temperature = record.temperature if temperature is None else temperature
    if temperature is None:  # whoever asks for a filter wants chance
        temperature = 0.0 if (top_k, top_p, min_p) == (None, None, None) else 1.0
    sampling = Sampling(
        temperature=temperature,
        top_k=0 if top_k is None else top_k,
        top_p=1.0 if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=1.0 if repetition_penalty is None else repetition_penalty,
        seed=seed,
    )
    has_start = record.start_id is not None
    kept = None if window is None else kept_from_start(window, context_length, has_start=has_start)
    return GenerationSettings(count, sampling, _stops(stop), deadline_ms and deadline_ms / 1e3, kept, bool(inexact))


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise InputError(f"stop holds {text!r}, and has to be a text that is not empty, or several.")
    return stops
