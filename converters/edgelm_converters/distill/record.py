"""What a distillation did."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm_converters.distill.measure import Measured
from edgelm_converters.distill.settings import Training

__all__ = ["Distillation"]


@dataclass(frozen=True)
class Distillation:
    """What a distillation did.

    Attributes:
        data: The training data's name.
        samples: Of them; of a language model, sequences.
        steps: Of training.
        seconds: Of training.
        teacher_parameters: Weights of the teacher; None where it was not recognised.
        student_parameters: Weights of the student.
        before: Teacher and student on the validation data, before; None where there are none.
        after: Likewise after.
        losses: The loss curve: means of equal runs of steps, at most 200.
        training: The settings.
        notes: What a reader should know.
    """

    data: str
    samples: int
    steps: int
    seconds: float
    teacher_parameters: int | None
    student_parameters: int
    before: Measured | None
    after: Measured | None
    losses: tuple[float, ...]
    training: Training
    notes: tuple[str, ...] = ()
