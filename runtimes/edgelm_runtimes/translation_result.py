"""What is known of a translation once it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LiveResult", "LiveText", "TranslationEnd", "TranslationResult"]

TranslationEnd = Literal["stop_token", "length", "deadline", "cancelled"]


@dataclass(frozen=True)
class TranslationResult:
    """A translation that has ended.

    Attributes:
        text: In whole characters; empty where the bundle has no tokenizer for answers.
        ids: Tokens of the answer, without those that it begins with and without the stop token.
        score: The sum of the tokens' log-probabilities divided by ``tokens ** length_penalty``, the stop token counted; None
            where there is no token. Tokens that were given are not in it.
        finish_reason: ``stop_token``; ``length``: `max_new_tokens` were made, or the model has no more positions; ``deadline``;
            ``cancelled``.
        source_tokens: Tokens (or frames) that were read, with those before and after the text.
        cut_tokens: Tokens of the source that were left out, as it was too long.
        sources: Texts that were read and answered side by side with it, itself included.
        tokenize_s: Seconds that tokenizing took, of all texts of the call.
        encode_s: Seconds that reading took, of all sources that were read together; None where it came to none.
        ttft_s: Time to first token: seconds from the call to the choice of the first, with waiting for others and with the
            texts before it; None where there was none.
        token_s: Seconds for each further token, of all that were answered together.
        total_s: Seconds from the call to the end of this answer.
    """

    text: str
    ids: tuple[int, ...]
    score: float | None
    finish_reason: TranslationEnd
    source_tokens: int
    cut_tokens: int
    sources: int
    tokenize_s: float
    encode_s: float | None
    ttft_s: float | None
    token_s: tuple[float, ...]
    total_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one, of this answer; None where there are none."""
        total = sum(self.token_s)
        return len(self.token_s) / total if total > 0 else None


@dataclass(frozen=True)
class LiveText:
    """A translation of what was said so far.

    Attributes:
        stable: Never changes any more; what follows only adds to it.
        tentative: May be taken back by the next update.
    """

    stable: str
    tentative: str


@dataclass(frozen=True)
class LiveResult:
    """A live translation that has ended.

    Attributes:
        text: All of it.
        ids: Its tokens.
        normalised_erasure: Tokens that were shown and taken back, for each token of the end (Arivazhagan et al. 2020,
            https://arxiv.org/abs/1912.03393, section 3): 0 never flickers, below 0.2 is called low there. None without tokens.
        update_s: Seconds of each update.
        updates: What each made of the text so far.
    """

    text: str
    ids: tuple[int, ...]
    normalised_erasure: float | None
    update_s: tuple[float, ...]
    updates: tuple[TranslationResult, ...]
