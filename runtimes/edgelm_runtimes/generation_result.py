"""What is known of an answer once it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FinishReason", "GenerationResult", "SpeculationCounts"]

FinishReason = Literal["stop_token", "stop_string", "length", "context", "deadline", "cancelled"]


@dataclass(frozen=True)
class SpeculationCounts:
    """How good the guesses were.

    Attributes:
        steps: Steps that guesses were checked in.
        proposed: Tokens guessed.
        accepted: Tokens of them that were taken.
    """

    steps: int
    proposed: int
    accepted: int


@dataclass(frozen=True)
class GenerationResult:
    """An answer that has ended.

    Attributes:
        text: What was streamed, as one text: without the stop token or string, and in whole characters.
        ids: Tokens of the answer, without the stop token, with those of a stop string.
        finish_reason: ``stop_token``; ``stop_string``; ``length``: `max_new_tokens` were made; ``context``: the model
            holds no more; ``deadline``; ``cancelled``.
        stop: The stop string that was met; None where none was.
        prompt_tokens: Tokens of the prompt, as given.
        cached_tokens: Tokens of the prompt that an earlier answer had computed already.
        prefill_tokens: Tokens of the prompt that were computed.
        prefill_s: Seconds that these took; None where none was computed to the end.
        ttft_s: Time to first token: seconds from the call to the choice of the first, with tokenizing and waiting for
            other answers; None where there was none.
        token_s: Seconds for each further token of the answer; those that came in one step share it evenly. The time
            between, in which nobody asked for more, is not in it.
        total_s: Seconds from the call to the end.
        left_out_tokens: Tokens of the prompt or the answer that a window left out of what the model saw.
        window_moves: Times that the answer came to the end of the context, and half of it was computed anew.
        speculation: None where nothing was guessed.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    prefill_s: float | None
    ttft_s: float | None
    token_s: tuple[float, ...]
    total_s: float
    left_out_tokens: int
    window_moves: int
    speculation: SpeculationCounts | None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one; None where there are none."""
        total = sum(self.token_s)
        return len(self.token_s) / total if total > 0 else None
