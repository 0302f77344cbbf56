"""Translating what somebody is still saying: all of it again with each word, behind what was promised.

Each update translates the text so far anew, behind the tokens that were promised before: these are given to the decoder as the
beginning of its answer. What is promised after an update is what two updates agree on (local agreement, Liu et al. 2020,
https://arxiv.org/abs/2005.11185, section 3.2), or all but the last tokens (hold-n, there too). What was promised is never taken
back; the rest is shown as tentative, and may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgelm.errors import InputError
from edgelm_runtimes.detokenize import Detokenizer
from edgelm_runtimes.translation_result import LiveResult, LiveText, TranslationResult

__all__ = ["LiveTranslation"]


class LiveTranslation:
    """A translation of a text that grows. Made by `Session.live_translation`. Not safe to use from two threads at once.

    >>> live = session.live_translation()
    >>> live.update("I would")
    LiveText(stable='', tentative='Ich würde')
    >>> live.finish("I would like tea").text

    Args:
        translate: Translates a text, with the tokens that the answer begins with.
        detokenizer: Makes what turns ids into text.
        clock: Gives seconds.
        hold: Tokens at the end of each translation that are not promised; None promises what two updates agree on.

    Raises:
        InputError: `hold` is no whole number, 0 or more.
    """

    def __init__(
        self,
        translate: Callable[[str, Sequence[int]], TranslationResult],
        detokenizer: Callable[[], Detokenizer | None],
        clock: Callable[[], float],
        *,
        hold: int | None = None,
    ) -> None:
        if hold is not None and (isinstance(hold, bool) or not isinstance(hold, int) or hold < 0):
            raise InputError(f"hold is {hold!r}, and has to be a whole number of tokens, 0 or more, or None.")
        self._translate = translate
        self._detokenizer = detokenizer
        self._clock = clock
        self._hold = hold
        self._said = ""
        self._shown: tuple[int, ...] = ()
        self._promised = 0  # of the tokens shown
        self._erased = 0
        self._update_s: list[float] = []
        self._updates: list[TranslationResult] = []
        self._ended = False

    def update(self, text: str) -> LiveText:
        """Return the translation of the text so far.

        The text may differ from before also in its middle, as that of a speech recogniser does. What was promised stays.

        Args:
            text: All of it, from its beginning. An empty one changes nothing.

        Raises:
            InputError: It cannot be read, or the translation has ended.
            ExecutionError: The runtime failed, or the session was closed.
        """
        if self._ended:
            raise InputError("This live translation has ended: begin another one.")
        if text == self._said or (isinstance(text, str) and not text.strip()):
            return self._text()
        result = self._again(text)
        # An answer that has no room for all that was promised still keeps it.
        ids = (*self._shown[: self._promised], *result.ids[self._promised :])
        agreed = _common(self._shown, ids) if self._hold is None else len(ids) - self._hold
        if result.finish_reason in ("deadline", "cancelled"):
            agreed = 0  # half of a translation: nothing more can be promised of it
        self._show(ids, max(self._promised, agreed))
        return self._text()

    def finish(self, text: str | None = None) -> LiveResult:
        """Return the whole translation, and how often what was shown was taken back.

        Args:
            text: The whole text, where more was said since the last update.

        Raises:
            InputError: As `update`.
            ExecutionError: As `update`.
        """
        if text is not None:
            self.update(text)
        self._ended = True
        self._promised = len(self._shown)
        return LiveResult(
            text=self._text().stable,
            ids=self._shown,
            normalised_erasure=self._erased / len(self._shown) if self._shown else None,
            update_s=tuple(self._update_s),
            updates=tuple(self._updates),
        )

    def _again(self, text: str) -> TranslationResult:
        began = self._clock()
        result = self._translate(text, self._shown[: self._promised])
        self._update_s.append(self._clock() - began)
        self._updates.append(result)
        self._said = text
        return result

    def _show(self, ids: tuple[int, ...], promised: int) -> None:
        self._erased += len(self._shown) - _common(self._shown, ids)
        self._shown = ids
        self._promised = min(promised, len(ids))

    def _text(self) -> LiveText:
        detokenizer = self._detokenizer()
        if detokenizer is None:
            return LiveText("", "")
        pieces = [detokenizer.push(token) for token in self._shown]
        stable = "".join(pieces[: self._promised])
        tentative = "".join(pieces[self._promised :]) + detokenizer.rest()
        # What ends amid a character is no text yet, but at the end.
        return LiveText(stable + tentative, "") if self._ended else LiveText(stable, tentative)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two answers begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
