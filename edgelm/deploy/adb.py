"""A phone, through adb. Android's shell has no Python: the files' checksums can be checked there, the numbers cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm.deploy.connection import Answer, Progress, call, command_line, last_line
from edgelm.deploy.scripts import MAKE_PART, REMOVE_PART
from edgelm.errors import DeviceError

__all__ = ["AdbConnection"]

_MISSING = "adb is not installed on this machine: install it with 'sudo apt-get install adb'."
_REASONS = (
    ("no devices/emulators found", "No phone is connected. Plug it in, and allow USB debugging on it."),
    ("more than one device", "Several phones are connected. Name one as adb:SERIAL, from: adb devices"),
    ("unauthorized", "The phone has not allowed this machine: unlock it, and accept the question about USB debugging."),
    ("offline", "The phone is offline: unplug it and plug it in again."),
    ("not found", "No phone with this serial number is connected. See: adb devices"),
)


@dataclass(frozen=True)
class AdbConnection:
    """A phone.

    Attributes:
        name: ``adb:SERIAL``, as messages call it.
        serial: "" is the only one that is connected.
    """

    name: str
    serial: str

    def run(self, script: str, arguments: Sequence[str]) -> Answer:
        """Run a script there, in ``/``."""
        answer = self._adb("shell", command_line(script, arguments))
        # adb's own failures end with 1, as a program's there may.
        if answer.status != 0 and last_line(answer.errors).startswith(("adb: ", "error: ")):
            raise DeviceError(self._explain(answer))
        return answer

    def deliver(
        self, files: Mapping[str, Path], script: str, arguments: Sequence[str], *, progress: Progress | None
    ) -> Answer:
        """Push files one by one into the part, then check them and put them into place."""
        folder, part = arguments[:2]
        made = self.run(MAKE_PART, arguments[:3])
        if made.status != 0:
            return made
        total, sent = sum(path.stat().st_size for path in files.values()), 0
        for name, path in files.items():
            pushed = self._adb("push", str(path), f"{folder}/{part}/{name}")
            if pushed.status != 0:
                # Where the cable is out this fails too; the next deployment sweeps the part away.
                self._adb("shell", command_line(REMOVE_PART, [folder, part]))
                raise DeviceError(f"{self._explain(pushed)} {sent:,} of {total:,} bytes had been sent.")
            sent += path.stat().st_size
            if progress is not None:
                progress("copying", sent, total)
        return self.run(script, arguments)

    def _adb(self, *arguments: str) -> Answer:
        which = ["-s", self.serial] if self.serial else []
        return call(["adb", *which, *arguments], feed=None, hold_stdin=False, missing=_MISSING)

    def _explain(self, answer: Answer) -> str:
        said = last_line(answer.errors) or last_line(answer.output) or "adb said nothing"
        if "No space left" in said:
            return f"There is no space left on {self.name}: remove something there."
        for words, message in _REASONS:
            if words in said:
                return f"{message} (adb: {said.removeprefix('adb: ').removeprefix('error: ')})"
        return f"{self.name} was lost ({said}). Check the cable, and run the command again."
