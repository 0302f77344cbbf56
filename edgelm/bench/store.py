"""The samples of a run in a file of their own: an ``.npz`` with an array for each column.

A log's lines stay short so, and ten thousand of them can be listed without reading a single latency.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bench.findings import StoredSamples
from edgelm.bench.generation_run import GenerationRun, GenerationSamples
from edgelm.bench.run import Run, Samples
from edgelm.errors import InputError, OutputError

__all__ = ["read_samples", "samples_folder", "write_samples"]

# The tokens of a language model's repetitions one after the other, and how many each repetition has.
_DECODE_COUNTS = "decode_counts"


def samples_folder(log: Path) -> Path:
    """Return where the samples of a log are: ``runs.samples`` beside ``runs.jsonl``."""
    return log.with_suffix(".samples")


def write_samples(run: Run | GenerationRun, log: Path) -> StoredSamples:
    """Write a run's samples beside a log, whole or not at all, and return where.

    Raises:
        OutputError: They cannot be written.
    """
    columns: dict[str, Any] = {
        field.name: np.asarray(value)
        for field in fields(run.samples)
        if field.name != "decode_s" and (value := getattr(run.samples, field.name)) is not None
    }
    if isinstance(run.samples, GenerationSamples):
        columns["decode_s"] = np.asarray([token for tokens in run.samples.decode_s for token in tokens], np.float64)
        columns[_DECODE_COUNTS] = np.asarray([len(tokens) for tokens in run.samples.decode_s], np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    content = buffer.getvalue()
    folder = samples_folder(log)
    path = folder / f"{run.id}.npz"
    beside = folder / f".{run.id}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(exist_ok=True)
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"The samples {path} cannot be written ({error.strerror}). Choose another place for the log."
        ) from error
    return StoredSamples(file=f"{folder.name}/{path.name}", sha256=hashlib.sha256(content).hexdigest())


def read_samples(stored: StoredSamples, log: Path, *, generation: bool) -> dict[str, Any]:
    """Return the samples of a line of a log, as the values that would stand in it.

    Args:
        stored: Where they are. A path that leads out of the log's folder is refused: a log may come from someone else.
        log: The log.
        generation: Whether they are a language model's.

    Raises:
        InputError: The file is missing, damaged, or not the one that was written.
    """
    parts = Path(stored.file).parts
    if not parts or Path(stored.file).is_absolute() or ".." in parts:
        raise InputError(f"{log}: the samples '{stored.file}' lie outside the log's folder, and are not read.")
    path = log.parent / stored.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{log}: the samples {path} cannot be read ({error.strerror}). Copy the folder beside the log along with it."
        ) from error
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise InputError(f"{path} is not the file that was written with the log: its SHA-256 is another one.")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no file of samples ({error}).") from error
    return _generation(columns, path) if generation else _plain(columns, Samples, path)


def _plain(columns: dict[str, Any], kind: type[Samples | GenerationSamples], path: Path) -> dict[str, Any]:
    known = {field.name for field in fields(kind)}
    if unknown := columns.keys() - known:
        raise InputError(f"{path} has columns that no run has: {', '.join(sorted(unknown))}.")
    return {name: columns[name].tolist() if name in columns else None for name in known}


def _generation(columns: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        counts, flat = columns.pop(_DECODE_COUNTS), columns.pop("decode_s")
    except KeyError as error:
        raise InputError(f"{path} lacks the column {error}: it is of another kind of run.") from error
    if int(counts.sum()) != len(flat):
        raise InputError(f"{path} is damaged: its repetitions have {counts.sum()} tokens, and it holds {len(flat)}.")
    parts = np.split(flat, np.cumsum(counts)[:-1]) if len(counts) else []
    return {**_plain(columns, GenerationSamples, path), "decode_s": [part.tolist() for part in parts]}
