"""Whether runs keep what was asked of them: ``edgelm report --check "p90 < 20ms and accuracy > 0.85"``.

A figure that was not measured keeps nothing: neither ``p90 < 20ms`` nor ``not p90 < 20ms`` is then known, and what is not
known fails, unless the rest of the expression decides it (Kleene's three-valued logic).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import InputError
from edgelm.report.expression import OPERATORS, Comparison, Expression, Join, Node, Not, parse
from edgelm.report.figures import FIELDS, Result
from edgelm.report.quantities import shown
from edgelm.report.rows import Row, group_runs

__all__ = ["Checked", "check", "parse"]


@dataclass(frozen=True)
class Checked:
    """What became of one run.

    Attributes:
        row: The run.
        passed: Whether the whole expression is true of it.
        reasons: Where it is not, each comparison that stands in the way, with the figure or why there is none.
    """

    row: Row
    passed: bool
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        """One line for people."""
        row = self.row
        where = f"{row.name} ({row.detail})"
        return f"ok    {where}" if self.passed else f"FAIL  {where}: {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as values ready for JSON."""
        row = self.row
        told = {"id": row.result.id, "model": row.model, "recipe": row.recipe, "runtime": row.runtime}
        return {**told, "passed": self.passed, "reasons": list(self.reasons)}


def check(results: Sequence[Result], expression: Expression, *, battery_wh: float | None = None) -> tuple[Checked, ...]:
    """Return what became of each run, in the order of a report.

    Args:
        results: At least one.
        expression: Of `parse`.
        battery_wh: As of `edgelm.report.rows.group_runs`.

    Raises:
        InputError: There is no run: a check of nothing would always pass.
    """
    if not results:
        raise InputError("There is no run to check. Make one with: edgelm benchmark BUNDLE -o RUN.json")
    rows = [row for group in group_runs(results, battery_wh=battery_wh) for row in group.rows]
    return tuple(_check(row, expression.root) for row in rows)


def _check(row: Row, root: Node) -> Checked:
    passed = _holds(row, root) is True
    reasons = () if passed else tuple(dict.fromkeys(_reasons(row, root, wanted=True)))
    return Checked(row, passed, reasons)


def _holds(row: Row, node: Node) -> bool | None:
    """Return whether it is true; None where that is not known."""
    if isinstance(node, Comparison):
        value = row.value(node.name)
        return None if value is None else OPERATORS[node.sign](value, node.amount)
    if isinstance(node, Not):
        inner = _holds(row, node.part)
        return None if inner is None else not inner
    sides = (_holds(row, node.left), _holds(row, node.right))
    decisive = node.word == "or"
    if decisive in sides:
        return decisive
    return None if None in sides else not decisive


def _reasons(row: Row, node: Node, *, wanted: bool) -> Iterator[str]:
    """Give the comparisons that keep `node` from being as it is wanted."""
    if isinstance(node, Join):
        for part in (node.left, node.right):
            if _holds(row, part) is not wanted:
                yield from _reasons(row, part, wanted=wanted)
    elif isinstance(node, Not):
        yield from _reasons(row, node.part, wanted=not wanted)
    else:
        value = row.value(node.name)
        told = f"{node.text} is asked for" if wanted else f"{node.text} is not to be"
        if value is None:
            yield f"{node.name} is not measured ({row.reason(node.name)}), and {told}"
        else:
            yield f"{node.name} is {shown(value, FIELDS[node.name].dimension)}, and {told}"
