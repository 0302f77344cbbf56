"""What a training needs, and whether it fits together: teacher, student, and the data as token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.errors import InputError, ModelError
from edgelm_converters.data import Dataset
from edgelm_converters.distill.kinds import kind_of
from edgelm_converters.distill.lessons import Lessons, classify_lessons, language_lessons
from edgelm_converters.lengths import choose_lengths
from edgelm_converters.reference import Reference
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.tokens import Tokens

__all__ = ["Course", "make_course"]

_LANGUAGE_LENGTH = 256  # tokens of a sequence where nothing is said: attention to more costs time, and teaches little


@dataclass(frozen=True, eq=False)
class Course:
    """A teacher, a student and samples that fit together.

    Attributes:
        teacher: None where it was not recognised.
        reference: The teacher as a function.
        student: Where it starts.
        lessons: What it is taught with.
        validation: What both are measured on; None where there are none.
        notes: For the record.
    """

    teacher: TransformerSpec | None
    reference: Reference
    student: TransformerSpec
    lessons: Lessons
    validation: Lessons | None
    notes: tuple[str, ...]


def make_course(
    teacher: TransformerSpec | None,
    reference: Reference,
    student: TransformerSpec,
    tokens: Tokens,
    data: Dataset,
    validation: Dataset | None,
    *,
    names: Sequence[str] | None,
    asked: int | None,
) -> Course:
    """Return what a training needs.

    Args:
        teacher: None where it was not recognised.
        reference: The teacher as a function.
        student: Where it starts.
        tokens: The tokenizer of both.
        data: What the student is taught with.
        validation: What both are measured on.
        names: Of the classes, where the data name them.
        asked: The most tokens of a sample.

    Raises:
        EdgelmError: Something does not fit together.
    """
    _check_pair(teacher, student)
    language = student.head.tokens is not None
    bound = min((spec.max_length for spec in (teacher, student) if spec and spec.max_length), default=None)
    if asked is not None and bound is not None and asked > bound:
        raise InputError(f"--sequence-length {asked} is more than teacher and student both take: {bound}.")
    if language:
        lengths: tuple[int, ...] = (asked or min(bound or _LANGUAGE_LENGTH, _LANGUAGE_LENGTH),)
        cut = tokens.bounded_by(lengths[-1])
    else:
        known = [length for length in (bound, tokens.max_length) if length is not None]
        lengths = choose_lengths(reference, teacher, tokens, asked or min(known, default=None)).buckets
        if not lengths:
            raise InputError("The teacher takes no sequence of token ids, and a student is taught with nothing else.")
        cut = tokens.cut_at(lengths[-1])
    notes: list[str] = []

    def lessons(dataset: Dataset) -> Lessons:
        if language:
            return language_lessons(dataset, cut.tokenizer, length=lengths[-1], pad_id=tokens.pad_id)
        if dataset.labels is not None and names is None and not all(label.isdigit() for label in dataset.labels):
            notes.append(f"The labels of {dataset.name} are names, and were left out: --labels gives their order.")
            dataset = dataclasses.replace(dataset, labels=None)
        return classify_lessons(dataset, reference, cut.tokenizer, labels=names, lengths=lengths, pad_id=tokens.pad_id)

    taught, checked = lessons(data), None if validation is None else lessons(validation)
    for entry in (taught, checked):
        _check_labels(entry, student)
    return Course(teacher, reference, student, taught, checked, tuple(notes))


def _check_pair(teacher: TransformerSpec | None, student: TransformerSpec) -> None:
    if teacher is None:
        return
    if teacher.vocabulary_size != student.vocabulary_size:
        raise ModelError(
            f"The teacher has {teacher.vocabulary_size:,} tokens and the student {student.vocabulary_size:,}: they must read "
            "the same ids. Trim the teacher's vocabulary in the same way."
        )
    mine, its = (_answer_of(spec) for spec in (student, teacher))
    if mine != its:
        raise ModelError(f"The student answers with {mine}, and the teacher with {its}: they must answer alike.")


def _answer_of(spec: TransformerSpec) -> str:
    if spec.head.tokens is not None:
        return "a score for each token"
    width = spec.head.layers[-1].linear.kernel.shape[1] if spec.head.layers else spec.width
    what = {"classes": "classes", "binary": "independent classes", "vector": "values"}[kind_of(spec)]
    return f"{width} {what}{' for each token' if spec.head.pooling == 'none' else ''}"


def _check_labels(lessons: Lessons | None, student: TransformerSpec) -> None:
    if lessons is None or not lessons.labelled or kind_of(student) == "vector":
        return
    width = student.head.layers[-1].linear.kernel.shape[1] if student.head.layers else student.width
    classes, highest = max(width, 2), int(lessons.labels.max())
    if highest >= classes:
        raise InputError(f"{lessons.name} holds the label {highest}, and the model has the classes 0 to {classes - 1}.")
