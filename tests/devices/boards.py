"""Raspberry Pis in QEMU's user mode: a board's processor, its Python and its wheels, on this machine's files.

What runs so was *executed*: the instructions and the libraries are the board's, the time and the memory are not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lanes import CACHE

__all__ = ["BOARDS", "PI_32_BIT", "Emulated", "native"]

# One process on two shared cores took up to 40 s; a hang is the only thing that takes this long.
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Emulated:
    """An emulated board.

    Attributes:
        title: Its name.
        lane: Of `lanes`.
        emulator: QEMU's program.
        cpu: QEMU's name of its processor.
    """

    title: str
    lane: str
    emulator: str
    cpu: str

    @property
    def python(self) -> Path:
        """The board's interpreter."""
        return CACHE / self.lane / "root/usr/bin/python3.11"

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line that runs the board's Python."""
        folder = CACHE / self.lane
        variables = {
            # "own" is edgelm's wheel; the last is where Debian's packages install.
            "PYTHONPATH": f"{folder / 'own'}:{folder / 'site-packages'}:{folder / 'root/usr/lib/python3/dist-packages'}",
            "PYTHONSAFEPATH": "1",
        }
        if self.lane == "pi32":
            # Where update-alternatives, which never ran here, would have pointed.
            libraries = folder / "root/usr/lib/arm-linux-gnueabihf"
            variables["LD_LIBRARY_PATH"] = f"{libraries / 'blas'}:{libraries / 'lapack'}"
        options = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
        emulator = CACHE / "qemu/usr/bin" / self.emulator
        return [
            str(emulator),
            "-cpu",
            self.cpu,
            "-L",
            str(folder / "root"),
            *options,
            str(self.python),
            *map(str, arguments),
        ]

    def run(self, *arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
        """Run the board's Python; `cache` is its cache folder."""
        return _run(self.command(*arguments), {"XDG_CACHE_HOME": str(cache)})

    def install(self, folder: Path) -> Path:
        """Write a program ``edgelm`` that starts the board's, and return it.

        Its ``sys.executable`` is a script that starts the emulator again: a process that the board's Python starts would run
        on this machine's kernel otherwise, which knows no such instructions.
        """
        python = folder / "python3.11"
        _script(python, " ".join(f"'{word}'" for word in self.command()) + ' "$@"')
        code = f"import sys; sys.executable = {str(python)!r}; from edgelm.cli import main; main()"
        program = folder / "edgelm"
        _script(program, f'\'{python}\' -c "{code}" "$@"')
        return program

    def edgelm(self, *arguments: str | Path, cache: Path) -> str:
        """Run a command of edgelm on the board and return what it printed."""
        return _checked(self.run("-m", "edgelm", *arguments, cache=cache))


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\nexec {command}\n")
    path.chmod(0o755)


def native(*arguments: str | Path) -> str:
    """Run a command of edgelm on this machine and return what it printed."""
    return _checked(_run([sys.executable, "-m", "edgelm", *map(str, arguments)], {}))


def _run(command: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=_TIMEOUT_S)


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


# The processors' features are the boards' but for aes and sha2, which Broadcom left out and QEMU has.
BOARDS = (
    Emulated("Raspberry Pi Zero 2 W", "pi64", "qemu-aarch64", "cortex-a53"),
    Emulated("Raspberry Pi 4", "pi64", "qemu-aarch64", "cortex-a72"),
    Emulated("Raspberry Pi 5", "pi64", "qemu-aarch64", "cortex-a76"),
)
# QEMU has no 32-bit Cortex-A53; this is the newest ARMv7, what a 32-bit Raspberry Pi OS is compiled for.
PI_32_BIT = Emulated("Raspberry Pi with a 32-bit system", "pi32", "qemu-arm", "cortex-a15")
