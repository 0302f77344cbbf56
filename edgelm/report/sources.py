"""Where a report's runs come from: edgelm's own files and logs, and what other tools wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from edgelm.bench import log
from edgelm.errors import InputError
from edgelm.report.figures import Result
from edgelm.report.foreign import read_foreign

__all__ = ["read_results"]

_OWN = (b'"edgelm-run"', b'"edgelm-generation-run"')


def read_results(paths: Iterable[Path | str], *, warn: Callable[[str], None] | None = None) -> list[Result]:
    """Read runs from files of edgelm, llama-bench, benchmark_model and Qualcomm AI Hub, told apart by what is in them.

    Args:
        paths: In the order of the report; a run that is in two of them comes once.
        warn: Takes a sentence on each thing left out; None issues a Python warning.

    Raises:
        InputError: A file is missing, holds no run, or is of no tool that is known.
        MissingPackageError: A ``.yaml`` needs PyYAML, which is not installed.
    """
    results: dict[str, Result] = {}
    for path in map(Path, paths):
        for result in _read(path, warn):
            results.setdefault(result.id, result)
    return list(results.values())


def _read(path: Path, warn: Callable[[str], None] | None) -> list[Result]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    if not any(mark in content for mark in _OWN):
        try:
            foreign = read_foreign(path, content.decode("utf-8", errors="replace"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if foreign is not None:
            return list(foreign)
    return list(log.read_all([path], warn=warn))
