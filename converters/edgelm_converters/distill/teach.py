"""The training loop: batches in an order that the seed decides, checkpoints on the way. Importing this module imports Keras."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelError
from edgelm_converters.distill.checkpoint import Checkpoint, identify, read_checkpoint, write_checkpoint
from edgelm_converters.distill.lessons import Lessons, inputs_of
from edgelm_converters.distill.settings import Training
from edgelm_converters.distill.targets import Targets
from edgelm_converters.distill.watcher import Pupil
from edgelm_converters.spec import TransformerSpec

__all__ = ["Taught", "compile_pupil", "teach", "thinned"]

_SPARSE = 0.1  # a kernel with that share of zeros was pruned; one that was only trained has hardly any


@dataclass(frozen=True, eq=False)
class Taught:
    """What a training left.

    Attributes:
        spec: The student after it.
        losses: Of every step.
        seconds: That it took, those before an interruption among them.
    """

    spec: TransformerSpec
    losses: tuple[float, ...]
    seconds: float


def teach(
    pupil: Pupil,
    spec: TransformerSpec,
    targets: Targets,
    lessons: Lessons,
    training: Training,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Taught:
    """Train a student.

    Weights that are exactly 0 in a kernel that was pruned weight by weight stay 0.

    Args:
        pupil: The student, fresh, with its optimiser (`compile_pupil`).
        spec: That it was made of.
        targets: What its teacher says.
        lessons: What it is taught with.
        training: The settings.
        checkpoint: The folder of the checkpoint; None for none.
        resume: Whether to go on from there.
        stop: Asked after each step; True writes a checkpoint and ends the training.
        tick: Called with the steps done and in total.

    Raises:
        InputError: There is nothing to resume, or it is of another training.
        ModelError: The loss is no number any more.
        KeyboardInterrupt: `stop` said so.
    """
    total = lessons.batches(training.batch_size) * training.epochs
    identity = identify(training, lessons, [np.asarray(array) for array in pupil.transformer.arrays])
    _keep_zeros(pupil)
    losses: list[float] = []
    seconds, first_epoch, skip = 0.0, 0, 0
    if resume and checkpoint is not None:
        found = read_checkpoint(checkpoint, identity, [tuple(variable.shape) for variable in pupil.state()])
        for variable, value in zip(pupil.state(), found.variables, strict=True):
            variable.assign(value)
        losses, seconds, first_epoch, skip = list(found.losses), found.seconds, found.epoch, found.step
    started = saved = time.monotonic()

    def save(epoch: int, step: int) -> None:
        if checkpoint is not None:
            spent = seconds + time.monotonic() - started
            variables = tuple(np.asarray(keras.ops.convert_to_numpy(variable)) for variable in pupil.state())
            write_checkpoint(checkpoint, Checkpoint(identity, epoch, step, tuple(losses), spent, variables))

    for epoch in range(first_epoch, training.epochs):
        skipped = skip if epoch == first_epoch else 0
        batches = lessons.shuffled(training.batch_size, training.seed, epoch, skip=skipped)
        for step, batch in enumerate(batches, skipped + 1):
            wanted: dict[str, NDArray[Any]] = {**targets(batch), "labels": batch.labels, "real": batch.real}
            pupil.reset_metrics()
            loss = float(np.asarray(pupil.train_on_batch(inputs_of(spec, batch), wanted)))
            if not math.isfinite(loss):
                raise ModelError(
                    f"The loss is {loss} at step {len(losses) + 1}: the student has left its senses; try a smaller "
                    f"--learning-rate than {training.learning_rate}."
                )
            losses.append(loss)
            tick(len(losses), total)
            if stop():
                save(epoch, step)
                raise KeyboardInterrupt
            if time.monotonic() - saved >= 60 * training.checkpoint_minutes:
                save(epoch, step)
                saved = time.monotonic()
        save(epoch + 1, 0)
        saved = time.monotonic()
    return Taught(pupil.transformer.spec(), tuple(losses), seconds + time.monotonic() - started)


def compile_pupil(pupil: Pupil, training: Training, total: int) -> None:
    """Give a student its optimiser, for a training of that many steps."""
    rise = round(training.warm_up * total)
    rate: Any = keras.optimizers.schedules.CosineDecay(
        0.0 if rise else training.learning_rate,
        max(total - rise, 1),
        warmup_target=training.learning_rate if rise else None,
        warmup_steps=rise,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=training.weight_decay, clipnorm=None, global_clipnorm=1.0)
    flat = [
        variable for variable in pupil.trainable_variables if len(variable.shape) < 2
    ]  # biases and norms do not decay
    optimizer.exclude_from_weight_decay(var_list=flat)
    optimizer.build(pupil.trainable_variables)
    compiled: Any = pupil  # Keras takes more than its types say
    compiled.compile(optimizer=optimizer, jit_compile=False)  # XLA would compile anew for each length


def _keep_zeros(pupil: Pupil) -> None:
    """Let weights that were pruned one by one stay 0."""
    for variable in pupil.transformer.arrays:
        kept = np.asarray(keras.ops.convert_to_numpy(variable)) != 0
        if kept.ndim == 2 and variable.trainable and 1 - kept.mean() >= _SPARSE:
            variable.constraint = _Masked(kept.astype(np.float32))


class _Masked(keras.constraints.Constraint):  # type: ignore[misc]  # Keras has no types
    def __init__(self, kept: NDArray[np.float32]) -> None:
        self._kept = kept

    def __call__(self, weight: Any) -> Any:
        return weight * self._kept


def thinned(losses: Sequence[float], points: int) -> tuple[float, ...]:
    """Return a curve of at most that many points: means of runs of steps."""
    return tuple(float(np.mean(run)) for run in np.array_split(losses, min(points, len(losses))))
