"""A board, through the system's own ssh: the user's keys, agent, jump hosts and configuration hold."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgelm.deploy.connection import Answer, Progress, call, command_line, last_line
from edgelm.deploy.scripts import UNPACK
from edgelm.errors import DeviceError

__all__ = ["SshConnection", "explain"]

# Never a question: stdin carries the bundle. A line that is silent for 30 s is lost (TCP alone waits two hours).
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "6",
    "ClearAllForwardings": "yes",
}
# ssh's own failures; the scripts end with none of it.
_FAILED = 255
_MISSING = "ssh is not installed on this machine: install it with 'sudo apt-get install openssh-client'."


@dataclass(frozen=True)
class SshConnection:
    """A board.

    Attributes:
        name: ``[USER@]HOST``.
        port: None leaves it to ssh's configuration.
        config: A file instead of ``~/.ssh/config``.
    """

    name: str
    port: int | None = None
    config: Path | None = None

    def run(self, script: str, arguments: Sequence[str]) -> Answer:
        """Run a script there."""
        answer = call(self._command(script, arguments), feed=None, hold_stdin=True, missing=_MISSING)
        if answer.status == _FAILED or answer.status < 0:
            raise DeviceError(explain(answer.errors, self.name))
        return answer

    def deliver(
        self, files: Mapping[str, Path], script: str, arguments: Sequence[str], *, progress: Progress | None
    ) -> Answer:
        """Send files as one tar through one session, which unpacks them, checks them and puts them into place."""
        total = sum(path.stat().st_size for path in files.values())
        stream = _Stream(total, progress)
        command = self._command(UNPACK + script, arguments)
        answer = call(command, feed=lambda stdin: stream.send(files, stdin), hold_stdin=False, missing=_MISSING)
        if answer.status == _FAILED or answer.status < 0:
            lost = f" {stream.sent:,} of {total:,} bytes had been sent; nothing was put into place there."
            raise DeviceError(explain(answer.errors, self.name) + (lost if stream.sent else ""))
        return answer

    def _command(self, script: str, arguments: Sequence[str]) -> list[str]:
        options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        where = ["-F", str(self.config)] if self.config is not None else []
        where += ["-p", str(self.port)] if self.port is not None else []
        return ["ssh", "-T", *options, *where, "--", self.name, command_line(script, arguments)]


class _Stream:
    """A tar of files on its way, which counts what has gone."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.sent = 0
        self._total = total
        self._progress = progress

    def send(self, files: Mapping[str, Path], stdin: IO[bytes]) -> None:
        with tarfile.open(fileobj=stdin, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for name, path in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    archive.addfile(entry, _Counted(file, self._count))

    def _count(self, size: int) -> None:
        self.sent += size
        if self._progress is not None:
            self._progress("copying", min(self.sent, self._total), self._total)


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file = file
        self._tell_count = count

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._tell_count(len(content))
        return content


def explain(errors: str, name: str) -> str:
    """Return what went wrong, why and what to do, from what ssh printed before it gave up.

    Args:
        errors: Its stderr.
        name: The board.
    """
    host = name.rpartition("@")[2]
    for words, message in _REASONS:
        if words in errors:
            return message.format(name=name, host=host)
    said = last_line(errors) or "ssh said nothing"
    return f"The connection to {name} was lost ({said}). Check its power and network, and run the command again."


_REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{host} has another key than before: it was set up anew, or something stands between. If it was, forget the old "
        "key with: ssh-keygen -R {host}",
    ),
    (
        "Host key verification failed",
        "{host} is not known to this machine yet. Connect once by hand and compare the fingerprint: ssh {name}",
    ),
    (
        "Could not resolve hostname",
        "No machine is called {host} (its name was not found). Check the name, or give its address, such as pi@192.168.1.20.",
    ),
    (
        "Permission denied",
        "{name} refuses every key of this machine. Let it in with: ssh-copy-id {name}",
    ),
    (
        "Too many authentication failures",
        "{name} refused after too many keys. Name the right one in ~/.ssh/config, with IdentitiesOnly yes.",
    ),
    (
        "Connection refused",
        "{host} answers, and no ssh server listens there. Switch it on, on a Raspberry Pi with: sudo raspi-config",
    ),
    (
        "No route to host",
        "{host} is not reached: it is off, or in another network.",
    ),
    (
        "Network is unreachable",
        "This machine has no network that leads to {host}. Check its own connection.",
    ),
    (
        "timed out",
        "{host} gave no answer in time: it is off, in another network, or behind a firewall.",
    ),
)  # fmt: skip
