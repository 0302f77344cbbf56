"""What a model is worth on data: accuracy, perplexity, or how near it is to its teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.causal_parity import surprise
from edgelm_converters.distill.kinds import Kind
from edgelm_converters.distill.lessons import Batch, Lessons
from edgelm_converters.distill.teacher import Teacher

__all__ = ["Measured", "Metric", "measure"]

Metric = Literal["accuracy", "agreement", "cosine", "perplexity"]


@dataclass(frozen=True)
class Measured:
    """A metric of teacher and student on the same samples.

    Attributes:
        metric: ``accuracy`` (share of the labels that are met), ``agreement`` (share of the teacher's choices that the student
            makes), ``cosine`` (of the two vectors, the mean), or ``perplexity`` of a token.
        data: The samples' name.
        samples: Their number; of a language model, tokens that were predicted.
        teacher: The teacher's value.
        student: The student's.
    """

    metric: Metric
    data: str
    samples: int
    teacher: float
    student: float


def measure(
    teacher: Teacher, student: Teacher, lessons: Lessons, kind: Kind, *, language: bool, batch_size: int
) -> Measured:
    """Return the metric that the data allow.

    Args:
        teacher: Who is asked first.
        student: Who is asked then.
        lessons: Samples.
        kind: What answers are.
        language: Whether they are scores of a next token.
        batch_size: Samples that are asked together.
    """
    sums = np.zeros(3)
    whole = teacher.watch(lessons.batch(np.arange(1)))["answer"].ndim == 2
    metric: Metric = "agreement"
    if language:
        metric = "perplexity"
    elif kind == "vector":
        metric = "cosine"
    elif lessons.labelled and whole:
        metric = "accuracy"
    for batch in lessons.in_order(batch_size):
        wanted, found = teacher.watch(batch)["answer"], student.watch(batch)["answer"]
        if metric == "perplexity":
            sums += _surprises(batch, wanted, found)
        elif metric == "accuracy":
            known = batch.labels >= 0
            right = [float((_choice(answer, kind) == batch.labels)[known].sum()) for answer in (wanted, found)]
            sums += (float(known.sum()), *right)
        else:
            counted = np.ones(len(batch.rows), bool) if whole else batch.real > 0
            near = _cosine(wanted, found) if kind == "vector" else _same(wanted, found, kind)
            sums += (float(counted.sum()), float(counted.sum()), float(near[counted].sum()))
    count = int(sums[0])
    values = [float(value) / count for value in sums[1:]]
    if metric == "perplexity":
        values = [math.exp(value) for value in values]
    return Measured(metric, lessons.name, count, values[0], values[1])


def _surprises(batch: Batch, wanted: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    sums = np.zeros(3)
    for place, count in enumerate(batch.real.sum(axis=1)):
        ids = batch.ids[place, :count]
        sums += (count - 1, surprise(ids, wanted[place, :count]), surprise(ids, found[place, :count]))
    return sums


def _choice(answer: NDArray[np.float32], kind: Kind) -> NDArray[np.int64]:
    if kind == "binary" and answer.shape[-1] == 1:
        return (answer[..., 0] > 0).astype(np.int64)
    choice: NDArray[np.int64] = answer.argmax(axis=-1)
    return choice


def _same(wanted: NDArray[np.float32], found: NDArray[np.float32], kind: Kind) -> NDArray[np.bool_]:
    alike = wanted.argmax(axis=-1) == found.argmax(axis=-1)
    same: NDArray[np.bool_] = ((wanted > 0) == (found > 0)).all(axis=-1) if kind == "binary" else alike
    return same


def _cosine(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(found, axis=-1)
    cosine: NDArray[np.float32] = (wanted * found).sum(axis=-1) / np.maximum(lengths, 1e-12)
    return cosine
