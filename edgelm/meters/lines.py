"""External meters that send a line a reading: over a serial port, or into stdin.

A line holds numbers with their units, in any order, with or without names::

    3.153 W
    t=12.500 s, 5.08 V, 620.5 mA
    {"voltage": "5.08 V", "energy": "1.2345 Wh"}

Power is taken before voltage times current, and these before energy. A reading's time is that of its arrival: a time in
the line is by another clock. Any microcontroller can send this; a meter that does not needs a line of script in between.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from pathlib import Path
from typing import Protocol

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Quantity, Reading, Scope
from edgelm.meters.readers import Clock, clock
from edgelm.meters.units import UNITS

if sys.platform != "win32":
    import termios

__all__ = ["DescriptorLines", "LineMeter", "LineSource", "open_serial", "open_stdin", "parse_line"]

_SYMBOLS = "|".join(re.escape(symbol) for symbol in sorted(UNITS, key=len, reverse=True))
_NUMBER = re.compile(rf"(?<![\w.])([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*({_SYMBOLS})(?!\w)")
_TIMEOUT_S = 2.0
_CHUNK = 4096


def parse_line(line: str) -> tuple[Quantity, float]:
    """Return what a line says, in watts or in joules.

    Raises:
        MeterError: It has no power, no energy, and no voltage with a current; or one of them twice.
    """
    found: dict[str, float] = {}
    for number, symbol in _NUMBER.findall(line):
        dimension, scale = UNITS[symbol]
        if dimension in found:
            raise MeterError(f"The meter's line {line.strip()[:80]!r} has more than one {dimension}, so none is taken.")
        found[dimension] = float(number) * scale
    if "power" in found:
        return "watts", found["power"]
    if "voltage" in found and "current" in found:
        return "watts", found["voltage"] * found["current"]
    if "energy" in found:
        return "joules", found["energy"]
    raise MeterError(
        f"The meter's line {line.strip()[:80]!r} has no power, no energy, and no voltage with a current. "
        "Send numbers with their units, such as: 5.08 V 620 mA"
    )


class LineSource(Protocol):
    """Where lines come from."""

    def next_line(self) -> str:
        """Return the next line, and wait for it.

        Raises:
            MeterError: None came in time, or the source has ended.
        """
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...


class DescriptorLines:
    """The lines of an open file: a port, a pipe, a terminal.

    Args:
        descriptor: Of the operating system.
        name: For messages.
        owned: Whether `close` closes it.
        timeout_s: How long to wait for a line.
    """

    def __init__(self, descriptor: int, name: str, *, owned: bool, timeout_s: float = _TIMEOUT_S) -> None:
        self._descriptor = descriptor
        self._name = name
        self._owned = owned
        self._timeout_s = timeout_s
        self._left = b""

    def next_line(self) -> str:
        """Return the next line, without its end.

        Raises:
            MeterError: None came in time, or the source has ended.
        """
        until = time.monotonic() + self._timeout_s
        while b"\n" not in self._left:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise MeterError(f"{self._name} sent no line for {self._timeout_s:g} s. Is the meter on?")
            self._left += self._more()
        line, _, self._left = self._left.partition(b"\n")
        return line.decode("utf-8", errors="replace").strip()

    def _more(self) -> bytes:
        try:
            more = os.read(self._descriptor, _CHUNK)
        except OSError as error:
            raise MeterError(f"{self._name} cannot be read any more ({error.strerror}). Was it unplugged?") from error
        if not more:
            raise MeterError(f"{self._name} has ended: no more readings come.")
        return more

    def close(self) -> None:
        """Close it, where it is this object's to close."""
        if self._owned:
            os.close(self._descriptor)
            self._owned = False


def open_stdin() -> DescriptorLines:
    """Return the lines that are piped into this process."""
    return DescriptorLines(sys.stdin.fileno(), "stdin", owned=False)


def open_serial(path: Path, *, baud: int = 115200) -> DescriptorLines:
    """Return the lines of a serial port: 8 bits, no parity, nothing changed on the way.

    Args:
        path: Such as ``/dev/ttyUSB0``.
        baud: Its speed.

    Raises:
        MeterError: The port is missing, may not be opened by this user, or does not know the speed; or this is Windows.
    """
    if sys.platform == "win32":
        raise MeterError("Serial ports are read on Linux and macOS alone. Pipe the meter's lines into stdin instead.")
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise MeterError(f"A serial port cannot be set to {baud} baud. Usual are 9600 and 115200.")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except PermissionError as error:
        raise MeterError(
            f"{path} may not be opened by this user. Join the group that may: sudo usermod -aG dialout $USER, then log in anew."
        ) from error
    except OSError as error:
        raise MeterError(f"{path} cannot be opened ({error.strerror}). Is the meter plugged in?") from error
    try:
        settings = termios.tcgetattr(descriptor)
        settings[0] = settings[1] = settings[3] = 0  # no translation of input or output, no line editing
        settings[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
        settings[4] = settings[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
        termios.tcflush(descriptor, termios.TCIFLUSH)
    except termios.error as error:
        os.close(descriptor)
        raise MeterError(f"{path} is no serial port: {error.args[-1]}.") from error
    return DescriptorLines(descriptor, str(path), owned=True)


class LineMeter:
    """A meter that sends lines.

    Args:
        source: Where they come from: `open_serial`, `open_stdin`.
        name: Of the meter.
        rate_hz: Lines a second.
        quantity: What its lines hold; a line of the other kind is an error.
        scope: ``device`` behind the power supply, ``wall`` before it.
        resolution: The meter's step, in watts or joules: that of the last digit it sends.
        now: The clock.
    """

    def __init__(
        self,
        source: LineSource,
        *,
        name: str,
        rate_hz: float,
        quantity: Quantity = "watts",
        scope: Scope = "device",
        resolution: float = 0.0,
        now: Clock = clock,
    ) -> None:
        self.facts = MeterFacts(
            name=name,
            sensor="external",
            scope=scope,
            method="measured",
            quantity=quantity,
            rate_hz=rate_hz,
            resolution=resolution,
            lag_s=1 / rate_hz,
            pushed=True,
            unseen=() if scope == "wall" else ("the losses of the power supply before it",),
        )
        self._source: LineSource = source
        self._now: Clock = now

    def open(self) -> None:
        """Pass over the first line, which may have begun before anyone listened, and read the second.

        Raises:
            MeterError: None comes, or it cannot be understood.
        """
        self._source.next_line()
        self.read()

    def read(self) -> Reading:
        """Return the next reading, and wait for it.

        Raises:
            MeterError: None comes, or it cannot be understood.
        """
        quantity, value = parse_line(self._source.next_line())
        if quantity != self.facts.quantity:
            raise MeterError(f"{self.facts.name} sent {quantity} where it sent {self.facts.quantity} before.")
        return Reading(self._now(), value)

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()
