"""Which language model writes fastest on one machine, and how its speed falls as the conversation grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.report.numbers import digits, latency
from edgelm.report.rows import Group, Row

__all__ = ["Depths", "WritingVerdict", "by_depth", "judge_writing"]


@dataclass(frozen=True)
class Depths:
    """One model in one runtime, at every depth that was measured.

    Attributes:
        name: Of the model, its runtime and what tells it from its neighbours.
        rows: By rising depth.
    """

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class WritingVerdict:
    """The answer for one machine.

    Attributes:
        choice: The run that writes fastest; None where they cannot be compared.
        headline: One sentence.
        reasons: What it rests on, a sentence each.
    """

    choice: Row | None
    headline: str
    reasons: tuple[str, ...]


def by_depth(rows: Sequence[Row]) -> tuple[Depths, ...]:
    """Return the runs of language models by model and setting, each with its depths in rising order."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.recipe, row.runtime, row.threads, row.source), []).append(row)
    lines = []
    for members in found.values():
        first = members[0]
        threads = "" if first.threads is None else f", {first.threads} thread{'' if first.threads == 1 else 's'}"
        recipe = f", {first.recipe}" if first.recipe else ""
        lines.append(Depths(f"{first.name}{recipe}{threads}", tuple(sorted(members, key=lambda row: row.depth or 0))))
    return tuple(lines)


def judge_writing(group: Group) -> WritingVerdict | None:
    """Return which language model writes fastest; None where none was measured.

    They are compared at the depth that most of them have, the shallowest of these; edgelm's own runs only.
    """
    rows = [row for row in group.tokens if row.source is None and row.value("decode_tokens_per_s") is not None]
    if not rows:
        return None
    counts: dict[int, int] = {}
    for row in rows:
        counts[row.depth or 0] = counts.get(row.depth or 0, 0) + 1
    depth = min(counts, key=lambda each: (-counts[each], each))
    at_depth = sorted((row for row in rows if (row.depth or 0) == depth), key=lambda row: -_speed(row))
    best = at_depth[0]
    where = f"with {depth:,} tokens in the cache" if depth else "with an empty cache"
    reasons = [
        f"It writes {digits(_speed(best))} tokens a second {where}, "
        f"and begins after {latency(best.value('ttft'))}." + _fall(rows, best)
    ]
    if len(at_depth) == 1:
        headline = f"{best.name} is the only language model here: there is nothing to compare it with yet."
        if counts.keys() != {depth}:
            headline = f"{best.name} writes {digits(_speed(best))} tokens a second {where}."
        return WritingVerdict(None, headline, tuple(reasons))
    following = at_depth[1]
    reasons.append(f"Next: {following.name} (#{following.number}) with {digits(_speed(following))}.")
    reasons.append("What they write is not judged here: compare their perplexity or their answers.")
    return WritingVerdict(best, f"{best.name} (#{best.number}) writes fastest.", tuple(reasons))


def _fall(rows: Sequence[Row], best: Row) -> str:
    line = next(depths for depths in by_depth(rows) if best in depths.rows)
    deepest = line.rows[-1]
    if deepest is best or (deepest.depth or 0) <= (best.depth or 0):
        return ""
    return f" At a depth of {deepest.depth:,} it writes {digits(_speed(deepest))}."


def _speed(row: Row) -> float:
    return row.value("decode_tokens_per_s") or 0.0
