"""The Pareto front: the runs that no other one beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgelm.report.rows import Row

__all__ = ["Front", "front_of", "not_dominated"]


@dataclass(frozen=True)
class Front:
    """The runs on the front.

    Attributes:
        numbers: Of the runs.
        objectives: What was weighed, in words.
        judged: Runs that had all of it.
    """

    numbers: frozenset[int]
    objectives: tuple[str, ...]
    judged: int

    @property
    def statement(self) -> str:
        """What the front is, in a sentence; empty where there is none."""
        if len(self.objectives) < 2 or self.judged < 2:
            return ""
        return (
            f"On the front ({len(self.numbers)} of {self.judged} runs): no other run is at least as good in "
            f"{', '.join(self.objectives[:-1])} and {self.objectives[-1]} and better in one of them."
        )


def not_dominated(costs: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    """Return which points no other one dominates: is at most as costly in every respect, and less in one.

    Args:
        costs: A row for each point, all of one length; less is better. Equal points do not dominate each other.
    """
    points = np.asarray(costs, dtype=np.float64)
    return tuple(not bool(np.any(np.all(points <= point, axis=1) & np.any(points < point, axis=1))) for point in points)


def front_of(rows: Sequence[Row], *, accuracies_comparable: bool) -> Front:
    """Return the front of the runs of one machine in speed, accuracy and energy; in size where no accuracy is known.

    A respect counts if a run has it, and then only runs that have it are judged. Energies count where all are measured and of
    one scope.

    Args:
        rows: Of models that answer, or of language models; one kind.
        accuracies_comparable: Whether they come from the same data.
    """
    generates = any(row.generates for row in rows)
    respects: list[tuple[str, float, str]] = [
        ("decode_tokens_per_s", -1.0, "tokens a second") if generates else ("p50", 1.0, "p50")
    ]
    if accuracies_comparable and any(row.value("accuracy") is not None for row in rows):
        respects.append(("accuracy", -1.0, "accuracy"))
    else:
        respects.append(("size", 1.0, "size"))
    energy = "energy_per_token" if generates else "energy"
    scopes = {row.energy_scope for row in rows if row.value(energy) is not None}
    if len(scopes) == 1:
        respects.append((energy, 1.0, "energy"))
    judged, costs = [], []
    for row in rows:
        values = [row.value(name) for name, _, _ in respects]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            judged.append(row)
            costs.append([sign * value for value, (_, sign, _) in zip(known, respects, strict=True)])
    on = not_dominated(costs) if judged else ()
    numbers = frozenset(row.number for row, kept in zip(judged, on, strict=True) if kept)
    return Front(numbers, tuple(words for _, _, words in respects), len(judged))
