"""Which bundle to ship, and why: computed from the runs of one machine by rules that the report states.

Only edgelm's own runs of models that answer are judged; `edgelm.report.writing` judges language models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgelm.bench import Run
from edgelm.report.numbers import digits, energy, latency, percent, size
from edgelm.report.rows import Group, Row

__all__ = ["RULES", "Best", "Verdict", "comparable_accuracy", "judge"]

_ACCURACY_TOLERANCE = 0.01
_LEVEL = 0.05
_HIT_RATE = 0.99

RULES = (
    f"Only runs of one machine are compared. Where a deadline was set, a run must keep it in {_HIT_RATE:.0%} of the queries. "
    f"Of those, the ones within {_ACCURACY_TOLERANCE * 100:.0f} percentage point of the best accuracy are equal in quality; "
    f"the fastest p90 of them wins (the p50 where there are too few queries for one), and of those within {_LEVEL:.0%} of it "
    "the smallest file."
)


@dataclass(frozen=True)
class Best:
    """The best of the runs in one respect.

    Attributes:
        title: Such as ``Fastest``.
        row: The run; None where nothing can be compared.
        value: Its figure.
        note: How the others are to it.
    """

    title: str
    row: Row | None
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """The answer for one machine.

    Attributes:
        choice: The run to ship; None where the runs do not tell.
        headline: One sentence.
        reasons: Why, a sentence each.
        bests: Fastest, smallest, most accurate, and least energy where that was measured.
    """

    choice: Row | None
    headline: str
    reasons: tuple[str, ...]
    bests: tuple[Best, ...]


def judge(group: Group) -> Verdict:
    """Return which run of a machine to ship, and which is best at what."""
    rows = tuple(row for row in group.answers if row.source is None)
    every = (*rows, *(row for row in group.untimed if not row.generates))
    bests = (_fastest(rows), _smallest(every), _most_accurate(every), *_thriftiest(rows))
    if not rows and group.answers:
        reason = "Their tools’ figures stand below as they state them, and are not judged."
        return Verdict(None, "Only other tools measured models here.", (reason,), ())
    if not rows:
        return Verdict(None, "Nothing here was timed on real hardware.", ("Measure on the device itself.",), bests)
    candidates, reasons = _keep_deadline(rows)
    if not candidates:
        return Verdict(None, "None of these keeps the deadline.", tuple(reasons), bests)
    candidates, reason = _keep_accurate(candidates)
    reasons.append(reason)
    choice, reason = _fastest_small(candidates)
    reasons.append(reason)
    if len(rows) == 1:
        headline = f"{choice.name} is the only run: there is nothing to compare it with yet."
        return Verdict(None, headline, tuple(reasons), bests)
    headline = f"Ship {choice.name} (#{choice.number})."
    profile = _run(choice).profile
    if profile is not None and not profile.match:
        headline = f"By this machine’s numbers, {choice.name} (#{choice.number})."
        reasons.append(f"Measure on {profile.title} before deciding: its order may be another.")
    return Verdict(choice, headline, tuple(reasons), bests)


def comparable_accuracy(rows: Sequence[Row]) -> bool:
    """Return whether all accuracies that are known come from the same data."""
    found = [row.result.bundle.accuracy for row in rows if isinstance(row.result, Run)]
    return len({(accuracy.data, accuracy.samples) for accuracy in found if accuracy is not None}) == 1


def _keep_deadline(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    asked = {_run(row).settings.deadline_s for row in rows}
    deadline = next(iter(asked))
    if len(asked) > 1:
        return list(rows), ["The runs have different deadlines, which are left aside."]
    if deadline is None:
        return list(rows), []
    kept = [row for row in rows if (row.value("deadline_hit_rate") or 0) >= _HIT_RATE]
    if kept:
        number = "It keeps" if len(rows) == 1 else f"{len(kept)} of {len(rows)} runs keep"
        return kept, [f"{number} the deadline of {latency(deadline)} in at least {_HIT_RATE:.0%} of the queries."]
    best = max(rows, key=lambda row: row.value("deadline_hit_rate") or 0)
    rate = percent(best.value("deadline_hit_rate"))
    return [], [f"The best, {best.name} (#{best.number}), answers {rate} of the queries within {latency(deadline)}."]


def _keep_accurate(rows: Sequence[Row]) -> tuple[list[Row], str]:
    known = [row for row in rows if row.value("accuracy") is not None]
    if not known:
        return list(
            rows
        ), "Accuracy was not measured, so this is about speed alone: convert with labelled data to know it."
    if not comparable_accuracy(known):
        return list(rows), "The accuracies come from different data and cannot be compared: this is about speed alone."
    best = max(map(_accuracy, known))
    kept = [row for row in known if best - _accuracy(row) <= _ACCURACY_TOLERANCE]
    unknown = len(rows) - len(known)
    left_out = f"; {unknown} without a known accuracy left out" if unknown else ""
    if len(known) == 1:
        return kept, f"Its accuracy is {percent(best)}{left_out}."
    point = f"{_ACCURACY_TOLERANCE * 100:.0f} percentage point"
    who = f"All {len(known)}" if len(kept) == len(known) else f"{len(kept)} of {len(known)}"
    return kept, f"{who} are within {point} of the best accuracy, {percent(best)}{left_out}."


def _fastest_small(rows: Sequence[Row]) -> tuple[Row, str]:
    by_p90 = all(row.value("p90") is not None for row in rows)
    speed = _p90 if by_p90 else _p50
    most = "nine queries in ten" if by_p90 else "half of the queries"
    fastest = min(rows, key=speed)
    level = [row for row in rows if speed(row) <= speed(fastest) * (1 + _LEVEL)]
    choice = min(level, key=lambda row: (_size(row), speed(row)))
    figures = f"{most} within {latency(speed(choice))}, {size(_size(choice))}"
    if len(rows) == 1:
        return choice, f"It answers {figures}."
    if choice is not fastest:
        return choice, f"It answers {figures}: level with the fastest (#{fastest.number}), and smaller."
    following = min((row for row in rows if row is not choice), key=speed)
    if following in level:
        return choice, f"It answers {figures}: the fastest, level with #{following.number}."
    factor = speed(following) / speed(choice)
    return choice, f"It answers {figures}: the fastest of them, {digits(factor)} times as fast as the next."


def _fastest(rows: Sequence[Row]) -> Best:
    return _best("Fastest", rows, _p50, lambda row: f"{latency(_p50(row))} p50", "not measured")


def _smallest(rows: Sequence[Row]) -> Best:
    return _best("Smallest", rows, _size, lambda row: size(_size(row)), "not known")


def _most_accurate(rows: Sequence[Row]) -> Best:
    known = [row for row in rows if row.value("accuracy") is not None]
    if known and not comparable_accuracy(known):
        return Best("Most accurate", None, "not comparable", "The accuracies come from different data.")
    best = _best(
        "Most accurate", known, lambda row: -_accuracy(row), lambda row: percent(_accuracy(row)), "not measured"
    )
    accuracy = _run(best.row).bundle.accuracy if best.row else None
    if accuracy is None:
        return Best(best.title, None, best.value, "No labelled data was given to the converter.")
    data = f"Keras {percent(accuracy.keras)}, {accuracy.samples:,} samples of {accuracy.data}"
    return Best(best.title, best.row, best.value, f"{best.note} {data}".strip())


def _thriftiest(rows: Sequence[Row]) -> tuple[Best, ...]:
    known = [row for row in rows if row.value("energy") is not None]
    scopes = {row.energy_scope for row in known}
    if len(scopes) != 1:
        return (Best("Least energy", None, "not comparable", "The meters saw different things."),) if scopes else ()
    scope = next(iter(scopes)) or "unknown"
    best = _best("Least energy", known, _joules, lambda row: f"{energy(_joules(row))} an answer", "not measured")
    return (Best(best.title, best.row, best.value, f"{best.note} Measured of the {scope}.".strip()),)


def _best(
    title: str, rows: Sequence[Row], key: Callable[[Row], float], show: Callable[[Row], str], nothing: str
) -> Best:
    if not rows:
        return Best(title, None, nothing, "")
    ordered = sorted(rows, key=key)
    best, others = ordered[0], ordered[1:]
    if not others:
        return Best(title, best, show(best), "")
    equal = [row for row in others if show(row) == show(best)]
    if equal:
        numbers = ", ".join(f"#{row.number}" for row in equal[:4]) + (" …" if len(equal) > 4 else "")
        return Best(title, best, show(best), f"Level with {numbers}" + ("" if numbers.endswith("…") else "."))
    return Best(title, best, show(best), f"Next: #{others[0].number} with {show(others[0])}.")


def _run(row: Row) -> Run:
    if not isinstance(row.result, Run):
        raise TypeError(f"run {row.number} is not of a model that answers, and has no place in this verdict")
    return row.result


def _accuracy(row: Row) -> float:
    return row.value("accuracy") or 0.0


def _joules(row: Row) -> float:
    return row.value("energy") or 0.0


def _p50(row: Row) -> float:
    return _run(row).results.p50_s


def _p90(row: Row) -> float:
    results = _run(row).results
    return results.max_s if results.p90_s is None else results.p90_s


def _size(row: Row) -> float:
    return float(_run(row).bundle.size_bytes)
