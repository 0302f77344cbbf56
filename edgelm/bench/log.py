"""Files of runs: one run, a list of runs (``.json``), or a log with one run a line (``.jsonl``).

A log only grows. Its lines hold everything but the samples, which are beside it (`edgelm.bench.store`); logs of an earlier
edgelm, with the samples in their lines, are read as well. ``.json`` files hold the samples themselves.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dacite

from edgelm.bench.findings import StoredSamples
from edgelm.bench.generation_run import GENERATION_FORMAT, GenerationRun
from edgelm.bench.output import write_text
from edgelm.bench.run import FORMAT, STRICT, Run, parse_json
from edgelm.bench.store import read_samples, write_samples
from edgelm.bench.upgrade import upgraded
from edgelm.errors import InputError, OutputError

__all__ = ["AnyRun", "append", "default_log", "find", "heads", "of_values", "read", "read_all", "write"]

Warn = Callable[[str], None]
AnyRun = Run | GenerationRun

# What begins the last value of a line. A quote inside of a text is escaped, so no text holds this.
_SAMPLES = b',"samples":{'


def default_log() -> Path:
    """Return where the runs of a user are: ``$XDG_DATA_HOME/edgelm/runs.jsonl``, by default below ``~/.local/share``.

    https://specifications.freedesktop.org/basedir-spec/latest/ : a path that is not absolute counts as none.
    """
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    base = named if named.is_absolute() else Path.home() / ".local" / "share"
    return base / "edgelm" / "runs.jsonl"


def append(run: AnyRun, path: Path | str) -> None:
    """Add a run to a log, made if it is not there; its samples go into a file beside it first.

    The line goes out in one write to a file opened for appending, so that several benchmarks can share a log. A line
    that was cut off before is closed first, and stays on its own.

    Raises:
        OutputError: The log or the samples cannot be written.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            stored = write_samples(run, path)
            size = os.fstat(descriptor).st_size
            cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            line = (b"\n" if cut_off else b"") + run.to_json(stored).encode() + b"\n"
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


def write(runs: Sequence[AnyRun], path: Path | str, *, force: bool = False) -> None:
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
    """Read the runs of several files, in order, without those of language models; one that is in two files comes once.

    Args:
        paths: ``.json`` and ``.jsonl`` files.
        warn: Takes a sentence on each thing left out; None issues a Python warning.

    Raises:
        InputError: As `read_all`; or there are only language models.
    """
    paths = list(paths)
    tell = warn or _warn
    found = read_all(paths, warn=tell)
    runs = [run for run in found if isinstance(run, Run)]
    if found and not runs:
        raise InputError(
            f"{', '.join(map(str, paths))}: there are only runs of language models, and others are wanted."
        )
    if len(runs) < len(found):
        tell(f"{len(found) - len(runs)} runs of language models are left out.")
    return runs


def read_all(paths: Iterable[Path | str], *, warn: Warn | None = None) -> list[AnyRun]:
    """Read the runs of several files, in order; a run that is in two of them comes once.

    A line of a log that is not JSON, as when power failed while it was written, or whose samples are not there any more, is
    reported and left out.

    Args:
        paths: ``.json`` and ``.jsonl`` files.
        warn: Takes a sentence on each thing left out; None issues a Python warning.

    Raises:
        InputError: A file is missing, holds no run, or one that is foreign, damaged or of a newer schema.
    """
    tell = warn or _warn
    runs: dict[str, AnyRun] = {}
    for path in map(Path, paths):
        for run in _read_file(path, tell):
            runs.setdefault(run.id, run)
    return list(runs.values())


def heads(path: Path | str, *, warn: Warn | None = None) -> Iterator[dict[str, Any]]:
    """Give the runs of a log one by one as values, without their samples: all that a list of them needs.

    Nothing but the format of a line is checked, and runs of an earlier version are given as those of today's.

    Raises:
        InputError: The log cannot be read, or holds a run of an earlier version that is damaged.
    """
    path, tell = Path(path), warn or _warn
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                data = _head(line)
                if data is not None:
                    yield upgraded(data)
                else:
                    tell(f"{path}, line {number} is cut off or no run, and is left out.")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _head(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line without its samples; None where it is cut off or no run.

    The samples are cut off before the line is parsed: those of an earlier edgelm are most of it.
    """
    if not line.rstrip().endswith(b"}"):
        return None
    cut = line.rfind(_SAMPLES)
    try:
        # Not `parse_json`: its check of every number takes as long again, and this is for a list.
        data = json.loads(line if cut < 0 else line[:cut] + b"}")
    except (ValueError, RecursionError):
        return None
    known = isinstance(data, dict) and data.get("format") in (FORMAT, GENERATION_FORMAT)
    return data if known and isinstance(data.get("id"), str) else None


def find(path: Path | str, run_id: str, *, warn: Warn | None = None) -> dict[str, Any]:
    """Return the one run of a log whose id begins so, as `heads` gives it.

    Raises:
        InputError: The log cannot be read, or holds none or several such runs.
    """
    found = {head["id"]: head for head in heads(path, warn=warn) if head["id"].startswith(run_id)}
    if len(found) != 1:
        count = f"{len(found)} runs" if found else "no run"
        raise InputError(f"{path} holds {count} whose id begins with '{run_id}'. List them with: edgelm runs list")
    return found.popitem()[1]


def _read_file(path: Path, warn: Warn) -> list[AnyRun]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    runs = _parse_log(content, path, warn) if path.suffix == ".jsonl" else _parse_file(content, path)
    if not runs:
        raise InputError(f"{path} holds no run. Write one with: edgelm benchmark BUNDLE -o {path.name}")
    return runs


def _parse_file(content: bytes, path: Path) -> list[AnyRun]:
    try:
        data = parse_json(content)
        return [_of_values(item) for item in (data if isinstance(data, list) else [data])]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse_log(content: bytes, path: Path, warn: Warn) -> list[AnyRun]:
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
            filled = _with_samples(data, path)
        except InputError as error:
            warn(f"{path}, line {number} is left out: {error}")
            continue
        try:
            runs.append(_of_values(filled))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return runs


def _with_samples(data: Any, log: Path) -> Any:
    """Return the values of a line with its samples, wherever they are.

    Raises:
        InputError: They are elsewhere, and cannot be read.
    """
    samples = data.get("samples") if isinstance(data, dict) else None
    if not isinstance(samples, dict) or "file" not in samples:
        return data
    try:
        stored = dacite.from_dict(StoredSamples, samples, STRICT)
    except dacite.DaciteError as error:
        raise InputError(f"it does not say where its samples are ({error}).") from error
    return {**data, "samples": read_samples(stored, log, generation=data.get("format") == GENERATION_FORMAT)}


def of_values(values: Iterable[Any]) -> list[AnyRun]:
    """Return runs from the values of their JSON, such as another machine printed.

    Raises:
        InputError: One is foreign, damaged or of a newer schema.
    """
    return [_of_values(data) for data in values]


def _of_values(data: Any) -> AnyRun:
    if isinstance(data, dict) and data.get("format") == GENERATION_FORMAT:
        return GenerationRun.from_dict(data)
    return Run.from_dict(data)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
