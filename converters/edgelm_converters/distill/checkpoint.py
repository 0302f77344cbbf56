"""A training that can be taken up again: its variables, how far it is, and what it is a training of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InputError
from edgelm_converters.distill.lessons import Lessons
from edgelm_converters.distill.settings import Training

__all__ = ["Checkpoint", "identify", "read_checkpoint", "write_checkpoint"]

_FILE = "state.npz"
_RECORD = "record"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a training stands.

    Attributes:
        identity: What it is a training of.
        epoch: Epochs that are done.
        step: Steps of the next epoch that are done.
        losses: Of every step so far.
        seconds: That it took so far.
        variables: Of the student and of the optimiser.
    """

    identity: dict[str, str]
    epoch: int
    step: int
    losses: tuple[float, ...]
    seconds: float
    variables: tuple[NDArray[Any], ...]


def identify(training: Training, lessons: Lessons, arrays: Iterable[NDArray[Any]]) -> dict[str, str]:
    """Return what a training is of: only the same is taken up again.

    Args:
        training: Its settings.
        lessons: What it is taught with.
        arrays: The student's weights before.
    """
    settings = {
        name: str(value) for name, value in dataclasses.asdict(training).items() if name != "checkpoint_minutes"
    }
    return {**settings, "data": _digest([*lessons.ids, lessons.labels]), "student": _digest(arrays)}


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into a folder, in place of the one that is there; a broken write leaves that one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {name: getattr(checkpoint, name) for name in ("identity", "epoch", "step", "losses", "seconds")}
    arrays: dict[str, Any] = {f"variable_{number}": value for number, value in enumerate(checkpoint.variables)}
    arrays[_RECORD] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    beside = folder / f"new-{_FILE}"
    with beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(folder / _FILE)


def read_checkpoint(folder: Path, identity: dict[str, str], shapes: Sequence[tuple[int, ...]]) -> Checkpoint:
    """Return the checkpoint of a folder.

    Args:
        folder: Where it is.
        identity: What is to be trained now.
        shapes: Of the variables that it must have.

    Raises:
        InputError: There is none, it is damaged, or it is of another training.
    """
    path = folder / _FILE
    if not path.is_file():
        raise InputError(f"There is no training to resume in {folder}: leave --resume out to start one.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            record = json.loads(archive[_RECORD].tobytes())
            variables = tuple(archive[f"variable_{number}"] for number in range(len(archive.files) - 1))
        found = Checkpoint(
            record["identity"],
            record["epoch"],
            record["step"],
            tuple(record["losses"]),
            record["seconds"],
            variables,
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"The checkpoint {path} is damaged ({error}): delete it and start again.") from error
    other = [name for name in identity if found.identity.get(name) != identity[name]]
    if other or [value.shape for value in variables] != list(shapes):
        what = ", ".join(other) or "its variables"
        raise InputError(
            f"The checkpoint {path} is of another training ({what} differs): resume with what it was started with, or delete "
            f"{folder} to start anew."
        )
    return found
