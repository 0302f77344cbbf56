"""What the meters read from: files, programs and the clock, as functions that a test replaces."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgelm.errors import MeterError

__all__ = ["Clock", "ReadText", "RunProgram", "clock", "read_text", "run_program", "timed"]

Clock = Callable[[], float]
ReadText = Callable[[Path], str]
RunProgram = Callable[[Sequence[str]], str]

# A vcgencmd takes some 25 ms and an adb some 50 ms; after this long the sensor hangs.
_TIMEOUT_S = 5.0

clock: Clock = time.monotonic


def read_text(path: Path) -> str:
    """Return a file of sysfs, without the line end.

    Raises:
        MeterError: It is missing, this user may not read it, or the driver behind it fails.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except PermissionError as error:
        raise MeterError(
            f"{path} may not be read by this user. Allow it until the next start with: sudo chmod a+r {path}"
        ) from error
    except OSError as error:
        raise MeterError(f"{path} cannot be read ({error.strerror}). Is the sensor's driver loaded?") from error


def run_program(arguments: Sequence[str]) -> str:
    """Return what a program prints.

    Raises:
        MeterError: It is not installed, fails, or does not end within 5 s.
    """
    name = arguments[0]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise MeterError(f"The program '{name}' is not installed, and the meter is read through it.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeterError(f"'{' '.join(arguments)}' gave no answer ({error}). Try it by hand.") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise MeterError(
            f"'{' '.join(arguments)}' failed with status {done.returncode} ({said[-1] if said else 'it said nothing'}). "
            "Try it by hand."
        )
    return done.stdout


def timed(read: Callable[[], float], now: Clock) -> tuple[float, float]:
    """Return the moment of a reading, and the value: the moment is the middle between asking and having it."""
    before = now()
    value = read()
    return (before + now()) / 2, value
