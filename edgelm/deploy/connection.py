"""What deploying needs of a way to a device: two methods."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgelm.errors import DeviceError

__all__ = ["Answer", "Connection", "Progress", "call", "command_line", "last_line"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Answer:
    """What a program said.

    Attributes:
        status: Its exit status; negative where a signal ended it.
        output: Of stdout, as UTF-8 with replacements.
        errors: Of stderr.
    """

    status: int
    output: str
    errors: str


class Connection(Protocol):
    """A way to a device. Implementations raise `DeviceError` where the device is not reached or is lost."""

    @property
    def name(self) -> str:
        """The device, as messages call it."""
        ...

    def run(self, script: str, arguments: Sequence[str]) -> Answer:
        """Run a script of the POSIX shell there, in the home folder; its stdin ends when this side ends."""
        ...

    def deliver(
        self, files: Mapping[str, Path], script: str, arguments: Sequence[str], *, progress: Progress | None
    ) -> Answer:
        """Put files into the folder ``$folder/$part`` there, and then run a script, which begins in `$folder`.

        Args:
            files: By their names there.
            script: Run after the files have come; see `edgelm.deploy.scripts`.
            arguments: Of the script; the first two are `$folder` and `$part`.
            progress: Told the bytes that were sent.
        """
        ...


def command_line(script: str, arguments: Sequence[str]) -> str:
    """Return one word line for a remote shell of any kind that runs a script in ``sh`` with arguments."""
    return " ".join(["sh", "-c", *map(shlex.quote, (script, "edgelm", *arguments))])


def call(command: Sequence[str], *, feed: Callable[[IO[bytes]], None] | None, hold_stdin: bool, missing: str) -> Answer:
    """Run a program here and return what it said.

    Args:
        command: The program and its arguments.
        feed: Writes its stdin; a program that ends before it has read all is no error.
        hold_stdin: Keep stdin open while it runs, so that its end tells the other side that this side is gone.
        missing: What to say where the program is not installed.

    Raises:
        DeviceError: It is not installed.
    """
    stdin = subprocess.PIPE if feed is not None or hold_stdin else subprocess.DEVNULL
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdin=stdin, stdout=output, stderr=errors)
        except FileNotFoundError as error:
            raise DeviceError(missing) from error
        try:
            if feed is not None and process.stdin is not None:
                _feed(process.stdin, feed)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdin is not None:
                _close(process.stdin)
        return Answer(status, _read(output), _read(errors))


def _feed(stdin: IO[bytes], feed: Callable[[IO[bytes]], None]) -> None:
    try:
        feed(stdin)
    except BrokenPipeError:
        pass  # it ended early; its status and its last line say why
    finally:
        _close(stdin)


def _close(stdin: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was still in the buffer has nowhere to go
        stdin.close()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def last_line(text: str) -> str:
    """Return the last line that says something, without ssh's warnings; "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning:")]
    return lines[-1] if lines else ""
