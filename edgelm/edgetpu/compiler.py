"""Running ``edgetpu_compiler``, and reading what it says.

Google ships it for x86-64 Linux only, closed, from its own package archive: https://coral.ai/docs/edgetpu/compiler/
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import ConversionError, InputError, OutputError, RuntimeUnavailableError

__all__ = ["CompilerRecord", "OperatorLine", "parse_compiler_log", "run_compiler"]

_PROGRAM = "edgetpu_compiler"
_MAPPED = "Mapped to Edge TPU"
# The compiler gives up by itself after three minutes.
_TIMEOUT_S = 600
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_VERSION = re.compile(r"Edge TPU Compiler version ([\d.]+)")
_SIZE = r":\s*([\d.]+)(B|KiB|MiB|GiB)"
_LINE = re.compile(r"(?m)^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$")


@dataclass(frozen=True)
class OperatorLine:
    """A line of the compiler's table: operators of one name that met the same fate."""

    operator: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """Whether they run on the Edge TPU."""
        return self.status == _MAPPED


@dataclass(frozen=True)
class CompilerRecord:
    """What the compiler said.

    Attributes:
        version: Of the compiler.
        output: The compiled file; None where only a log was read.
        operators: Its table.
        subgraphs: Parts that run on the Edge TPU; None where it did not say.
        cached_bytes: Weights that stay on the chip, to 1 % as it prints them; None where it did not say.
        streamed_bytes: Weights that are sent at each call; None where it did not say.
    """

    version: str
    output: Path | None
    operators: tuple[OperatorLine, ...]
    subgraphs: int | None
    cached_bytes: int | None
    streamed_bytes: int | None

    @property
    def mapped_operators(self) -> int:
        """Operators on the Edge TPU."""
        return sum(line.count for line in self.operators if line.mapped)

    @property
    def cpu_operators(self) -> int:
        """Operators left to the processor."""
        return sum(line.count for line in self.operators if not line.mapped)


def parse_compiler_log(text: str) -> CompilerRecord:
    """Read what the compiler prints with ``--show_operations``, or its ``.log`` file.

    Raises:
        InputError: It is no such log.
    """
    version = _VERSION.search(text)
    if version is None:
        raise InputError(f"It is no log of {_PROGRAM}: it does not name the compiler's version.")
    lines = tuple(OperatorLine(found[1], int(found[2]), found[3]) for found in _LINE.finditer(text))
    subgraphs = re.search(r"Number of Edge TPU subgraphs: (\d+)", text)
    return CompilerRecord(
        version=version[1],
        output=None,
        operators=lines,
        subgraphs=int(subgraphs[1]) if subgraphs else None,
        cached_bytes=_size(text, "On-chip memory used for caching model parameters"),
        streamed_bytes=_size(text, "Off-chip memory used for streaming uncached model parameters"),
    )


def _size(text: str, what: str) -> int | None:
    found = re.search(re.escape(what) + _SIZE, text)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def run_compiler(path: str | Path, *, folder: str | Path | None = None, force: bool = False) -> CompilerRecord:
    """Compile a TFLite file for the Edge TPU.

    Args:
        path: A file that is int8 throughout, with fixed shapes; see `check_operators`.
        folder: Where ``NAME_edgetpu.tflite`` goes; beside `path` without.
        force: Replace one that is there.

    Raises:
        RuntimeUnavailableError: The compiler is not installed.
        ConversionError: It refuses the file.
        OutputError: The output exists, or cannot be written.
    """
    source = Path(path)
    output = (Path(folder) if folder is not None else source.parent) / f"{source.stem}_edgetpu.tflite"
    if output.exists() and not force:
        raise OutputError(f"{output} exists already. Choose another folder, or replace it with --force.")
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".edgetpu-") as made:
            said = _call(source, Path(made))
            record = parse_compiler_log(said)
            file = Path(made) / output.name
            if not file.is_file():
                raise ConversionError(f"{_PROGRAM} wrote no file for {source}: {_last_line(said)}")
            file.replace(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror}).") from error
    return CompilerRecord(
        record.version, output, record.operators, record.subgraphs, record.cached_bytes, record.streamed_bytes
    )


def _call(source: Path, folder: Path) -> str:
    command = [_PROGRAM, "--show_operations", "--out_dir", str(folder), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise RuntimeUnavailableError(
            f"{_PROGRAM} is not installed. It exists for x86-64 Linux only: see https://coral.ai/docs/edgetpu/compiler/"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConversionError(
            f"{_PROGRAM} did not end within {_TIMEOUT_S} s: the model is too large for it."
        ) from error
    if done.returncode != 0:
        raise ConversionError(f"{_PROGRAM} refuses {source}: {_last_line(done.stdout + done.stderr)}")
    return done.stdout + done.stderr


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
