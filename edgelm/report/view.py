"""What the page shows of the runs of one machine, and of all machines together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.report.against import Against, against
from edgelm.report.cautions import cautions_of
from edgelm.report.details import Details, details_of
from edgelm.report.drawings import (
    Drawing,
    Strip,
    depth_drawings,
    distribution_drawing,
    moment_drawings,
    part_strips,
    shown_first,
)
from edgelm.report.pareto import Front, front_of
from edgelm.report.rows import Group, Row
from edgelm.report.scatter import scatter_drawings
from edgelm.report.tables import Table, answers_table, writing_table
from edgelm.report.verdict import Best, comparable_accuracy, judge
from edgelm.report.writing import judge_writing

__all__ = ["GroupView", "Overview", "Section", "overview", "view"]


@dataclass(frozen=True)
class Section:
    """The runs of one kind on one machine.

    Attributes:
        kind: ``answers`` or ``writing``.
        choice: The run to ship; None where they do not tell.
        headline: The answer, in a sentence.
        reasons: Why, a sentence each.
        bests: The best in each respect.
        table: Of all these runs.
        front: Those that no other one beats.
        series: The runs whose lines are shown first, by number, with their colours.
        overlays: The charts whose lines the reader chooses.
        drawings: The other charts.
        strips_axis: Above the strips; empty where there are none.
        strips: Where the time goes.
        reference: What the others are compared with; None of a single run.
        comparisons: The others against it.
    """

    kind: str
    choice: Row | None
    headline: str
    reasons: tuple[str, ...]
    bests: tuple[Best, ...]
    table: Table
    front: Front
    series: dict[int, int]
    overlays: tuple[Drawing, ...]
    drawings: tuple[Drawing, ...]
    strips_axis: str
    strips: tuple[Strip, ...]
    reference: Row | None
    comparisons: tuple[Against, ...]


@dataclass(frozen=True)
class GroupView:
    """A machine with its runs.

    Attributes:
        group: The runs.
        sections: Those of models that answer, and of those that write, as far as there are any.
        cautions: What must be known to believe the numbers, with the numbers of the runs that it is about.
        details: Everything of every run.
    """

    group: Group
    sections: tuple[Section, ...]
    cautions: tuple[tuple[str, tuple[int, ...]], ...]
    details: tuple[Details, ...]


@dataclass(frozen=True)
class Overview:
    """One line on one machine: its answer."""

    title: str
    anchor: int
    section: Section
    row: Row


def view(group: Group) -> GroupView:
    """Return what the page shows of one machine."""
    sections = []
    if group.answers or not group.tokens:
        sections.append(_answers(group))
    if group.tokens:
        sections.append(_writing(group))
    details = tuple(details_of(row) for row in group.rows)
    return GroupView(group, tuple(sections), cautions_of(group.rows), details)


def overview(views: Sequence[GroupView]) -> tuple[Overview, ...]:
    """Return each machine's answer: the run to ship, or the first of those that are not compared."""
    lines = []
    for index, each in enumerate(views, start=1):
        for section in each.sections:
            row = section.choice or next((row for row, _ in section.table.lines), None)
            if row is not None:
                lines.append(Overview(each.group.title, index, section, row))
    return tuple(lines)


def _answers(group: Group) -> Section:
    rows = group.answers
    verdict = judge(group)
    comparable = comparable_accuracy(rows)
    front = front_of(rows, accuracies_comparable=comparable)
    series = shown_first(rows, verdict.choice, front)
    spread = distribution_drawing(rows, series)
    axis, strips = part_strips(rows, series)
    reference = _reference(rows, verdict.choice)
    return Section(
        "answers",
        verdict.choice,
        verdict.headline,
        verdict.reasons,
        verdict.bests,
        answers_table(rows),
        front,
        series,
        (*(() if spread is None else (spread,)), *moment_drawings(rows, series)),
        scatter_drawings(rows, verdict.choice, front, accuracies_comparable=comparable),
        axis,
        strips,
        reference,
        () if reference is None else against(rows, reference),
    )


def _writing(group: Group) -> Section:
    rows = group.tokens
    verdict = judge_writing(group)
    choice = None if verdict is None else verdict.choice
    comparable = comparable_accuracy(rows)
    together = _at_one_depth(rows, choice)
    front = front_of(together, accuracies_comparable=comparable)
    series = shown_first(together, choice, front)
    reference = _reference(rows, choice)
    alike = [row for row in rows if reference is not None and row.depth == reference.depth]
    return Section(
        "writing",
        choice,
        "Only other tools measured language models here." if verdict is None else verdict.headline,
        () if verdict is None else verdict.reasons,
        (),
        writing_table(rows),
        front,
        series,
        moment_drawings(rows, series),
        (
            *depth_drawings(rows),
            *scatter_drawings(together, choice, front, accuracies_comparable=comparable),
        ),
        "",
        (),
        reference if len(alike) > 1 else None,
        () if reference is None else against(alike, reference),
    )


def _reference(rows: Sequence[Row], choice: Row | None) -> Row | None:
    own = [row for row in rows if row.source is None]
    return None if len(rows) < 2 or not own else choice or own[0]


def _at_one_depth(rows: Sequence[Row], choice: Row | None) -> list[Row]:
    """Return the runs at the depth of the fastest: those at other depths did other work."""
    depth = rows[0].depth if choice is None else choice.depth
    return [row for row in rows if row.depth == depth]
