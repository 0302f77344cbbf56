"""Ending an answer at a text, which may come in parts."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopText"]


class StopText:
    """Lets text through up to the first of some stop strings.

    What could be the beginning of one is held back until it is known, so that nothing of a stop string, and nothing after
    it, is ever let through.

    Args:
        stops: The strings, none of them empty.

    Attributes:
        found: The stop string that was met; None until then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next text and return what may be shown of it and of what was held back.

        Of several stop strings in it the one that begins first counts, and of those the shortest. Once one was found,
        nothing is let through.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        starts = [(start, len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            start, _, self.found = min(starts)
            self._held = ""
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, as no more text comes: it was no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that is the beginning of a stop string, and not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
