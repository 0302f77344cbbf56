"""Files of runs: one run, a list of runs (``.json``), or a log with one run a line (``.jsonl``)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgelm.bench.generation_run import GENERATION_FORMAT, GenerationRun
from edgelm.bench.output import write_text
from edgelm.bench.run import Run, parse_json
from edgelm.errors import InputError, OutputError

__all__ = ["append", "read", "write"]

Warn = Callable[[str], None]


def append(run: Run, path: Path | str) -> None:
    """Add a run to a log, made if it is not there.

    The line goes out in one write to a file opened for appending, so that several benchmarks can share a log. A line
    that was cut off before is closed first, and stays on its own.

    Raises:
        OutputError: The log cannot be written.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            line = (b"\n" if cut_off else b"") + run.to_json().encode() + b"\n"
            written = os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"The log {path} cannot be written ({error.strerror}). Choose another place.") from error
    if written != len(line):
        raise OutputError(
            f"The log {path} took {written} of {len(line)} bytes: is the disk full? The run is not in it."
        )


def write(runs: Sequence[Run | GenerationRun], path: Path | str, *, force: bool = False) -> None:
    """Write runs to a file: ``.jsonl`` a line each, otherwise JSON: the run itself if it is one, or a list.

    Raises:
        OutputError: The file exists and `force` is not given, or it cannot be written.
    """
    path = Path(path)
    lines = [run.to_json() for run in runs]
    if path.suffix == ".jsonl":
        text = "".join(f"{line}\n" for line in lines)
    elif len(lines) == 1:
        text = f"{lines[0]}\n"
    else:
        text = "[\n" + ",\n".join(lines) + "\n]\n"
    write_text(text, path, force=force)


def read(paths: Iterable[Path | str], *, warn: Warn | None = None) -> list[Run]:
    """Read the runs of several files, in order; a run that is in two of them comes once.

    A line of a log that is not JSON, as when power failed while it was written, is reported and left out.

    Args:
        paths: ``.json`` and ``.jsonl`` files.
        warn: Takes a sentence on each thing left out; None issues a Python warning.

    Raises:
        InputError: A file is missing, holds no run, or one that is foreign, damaged or of a newer schema.
    """
    tell = warn or _warn
    runs: dict[str, Run] = {}
    for path in map(Path, paths):
        for run in _read_file(path, tell):
            runs.setdefault(run.id, run)
    return list(runs.values())


def _read_file(path: Path, warn: Warn) -> list[Run]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    runs = _parse_log(content, path, warn) if path.suffix == ".jsonl" else _parse_file(content, path)
    if not runs:
        raise InputError(f"{path} holds no run. Write one with: edgelm benchmark BUNDLE -o {path.name}")
    return runs


def _parse_file(content: bytes, path: Path) -> list[Run]:
    try:
        data = parse_json(content)
        items = data if isinstance(data, list) else [data]
        if any(isinstance(item, dict) and item.get("format") == GENERATION_FORMAT for item in items):
            raise InputError("it holds runs of language models, which reports do not show yet. Read it as JSON.")
        return [Run.from_dict(item) for item in items]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse_log(content: bytes, path: Path, warn: Warn) -> list[Run]:
    runs = []
    # As bytes: a line may be cut in the middle of a character, and only "\n" ends one (a string may hold U+2028).
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            data = parse_json(line)
        except InputError:
            warn(f"{path}, line {number} is cut off or not JSON, and is left out.")
            continue
        try:
            runs.append(Run.from_dict(data))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return runs


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
