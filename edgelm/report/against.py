"""Each run against one of them: how much faster or slower, how sure that is, and why it may not be comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.bench import Comparison, GenerationRun, Run
from edgelm.bench.assemble import blocks_of, comparison_with
from edgelm.bench.comparability import comparability
from edgelm.report.foreign import ForeignRun
from edgelm.report.numbers import DASH, digits
from edgelm.report.rows import Row

__all__ = ["Against", "against"]

_APART = "measured at another time, not in turns with it, so the difference has no interval"


@dataclass(frozen=True)
class Against:
    """A run against the reference.

    Attributes:
        row: The run.
        ratio: Of its time to the reference's: below 1 it is faster. None where there is nothing to compare.
        low: Lower end of the confidence interval; None where the two were not measured in turns.
        high: Upper end.
        verdict: In words.
        caveats: Why the two are not alike in more than what is compared.
    """

    row: Row
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    caveats: tuple[str, ...]

    @property
    def figures(self) -> str:
        """The ratio, with its interval where it has one."""
        if self.ratio is None:
            return DASH
        if self.low is None or self.high is None:
            return f"× {digits(self.ratio)}"
        return f"× {digits(self.ratio)} ({digits(self.low)} to {digits(self.high)})"


def against(rows: Sequence[Row], reference: Row) -> tuple[Against, ...]:
    """Return every other run against the reference, in order; both are of one machine and one kind.

    Where the two were measured in turns, that is what the benchmark found, or, of a pair that it did not compare, what it
    would have found; else the ratio of the medians, without an interval, and with the reasons why it may be of something else
    than the model.
    """
    return tuple(_against(row, reference) for row in rows if row is not reference)


def _against(row: Row, reference: Row) -> Against:
    if isinstance(row.result, ForeignRun) or isinstance(reference.result, ForeignRun):
        return Against(row, None, None, None, "not comparable", ("measured by another tool, in its own way",))
    for comparison in row.result.comparisons:
        if comparison.with_id == reference.result.id:
            return _recorded(row, comparison)
    for comparison in reference.result.comparisons:
        if comparison.with_id == row.result.id:
            return _turned(row, comparison)
    own, base = _turns_of(row.result), _turns_of(reference.result)
    if row.result.session == reference.result.session and own and base:
        return _recorded(row, comparison_with(reference.result, row.result, base, own))
    time = "token_p50" if row.generates else "p50"
    one, other = row.value(time), reference.value(time)
    reasons = comparability(row.result, reference.result)
    if one is None or other is None:
        return Against(row, None, None, None, "not comparable", reasons)
    apart = () if row.result.session == reference.result.session else (_APART,)
    return Against(row, one / other, None, None, "not tested", (*apart, *reasons))


def _turns_of(run: Run | GenerationRun) -> dict[int, list[float]]:
    """Return the times by their round of turns; empty where that is not known."""
    if isinstance(run, Run):
        return blocks_of(run.samples.block or (), run.samples.latency_s if run.samples.block else ())
    found: dict[int, list[float]] = {}
    for block, tokens in zip(run.samples.block or (), run.samples.decode_s, strict=False):
        found.setdefault(block, []).extend(tokens)
    return found


def _recorded(row: Row, found: Comparison) -> Against:
    return Against(row, found.ratio, found.low, found.high, _words(found.verdict, found), found.caveats)


def _turned(row: Row, found: Comparison) -> Against:
    verdict = {"faster": "slower", "slower": "faster"}.get(found.verdict, found.verdict)
    ratio, low, high = (None if value is None else 1 / value for value in (found.ratio, found.low, found.high))
    return Against(row, ratio, high, low, _words(verdict, found), found.caveats)


def _words(verdict: str, found: Comparison) -> str:
    if verdict == "too few blocks":
        return f"too few turns ({found.blocks}) to tell"
    return f"{verdict} ({found.confidence:.0%}, {found.blocks} turns)"
