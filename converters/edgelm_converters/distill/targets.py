"""What the teacher says of each sample: asked once and kept on disk where it fits, asked again for each batch elsewhere."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.distill.lessons import Batch, Lessons
from edgelm_converters.distill.teacher import Answers, Teacher

__all__ = ["Targets", "keep_targets"]

Targets = Callable[[Batch], Answers]
Tick = Callable[[int, int], None]

_MOST_BYTES = 8 << 30  # a vocabulary of 50,000 takes 200 kB a token: such a teacher is asked again for each batch


def keep_targets(
    teacher: Teacher,
    lessons: Lessons,
    folder: Path,
    *,
    batch_size: int,
    most_bytes: int = _MOST_BYTES,
    tick: Tick = lambda done, total: None,
) -> Targets:
    """Return a function from a batch to what the teacher says of it.

    Args:
        teacher: Who is asked.
        lessons: All samples.
        folder: Where it is kept; no more than `most_bytes`, and than half of what is free there.
        batch_size: Samples that are asked together.
        most_bytes: Beyond these nothing is kept.
        tick: Called with the batches asked and in total.
    """
    first = lessons.batch(np.arange(min(batch_size, len(lessons))))
    shapes = {name: _shape(value, first) for name, value in teacher.watch(first).items()}
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lessons.ids])])
    rows = {name: int(offsets[-1]) if per_token else len(lessons) for name, (per_token, _) in shapes.items()}
    needed = sum(4 * rows[name] * width for name, (_, width) in shapes.items())
    if needed > min(most_bytes, shutil.disk_usage(folder).free // 2):
        return teacher.watch
    kept = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows[name], width))
        for name, (_, width) in shapes.items()
    }
    total = lessons.batches(batch_size)
    for done, batch in enumerate(lessons.in_order(batch_size), 1):
        for name, value in teacher.watch(batch).items():
            if not shapes[name][0]:
                kept[name][batch.rows] = value
                continue
            for place, row in enumerate(batch.rows):
                kept[name][offsets[row] : offsets[row + 1]] = value[place, : len(lessons.ids[row])]
        tick(done, total)
    return lambda batch: {name: _read(kept[name], batch, offsets, per_token=shapes[name][0]) for name in kept}


def _shape(value: NDArray[np.float32], batch: Batch) -> tuple[bool, int]:
    """Return whether a value has a row for each token, and the width of a row."""
    per_token = value.ndim == 3
    return per_token, math.prod(value.shape[2:] if per_token else value.shape[1:])


def _read(
    kept: NDArray[np.float32], batch: Batch, offsets: NDArray[np.intp], *, per_token: bool
) -> NDArray[np.float32]:
    if not per_token:
        return np.asarray(kept[batch.rows])
    values = np.zeros((*batch.ids.shape, kept.shape[1]), np.float32)
    for place, row in enumerate(batch.rows):
        values[place, : offsets[row + 1] - offsets[row]] = kept[offsets[row] : offsets[row + 1]]
    return values
