"""A board for tests: a real OpenSSH server on the loopback interface, whose sessions see a home folder of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Board", "find_sshd", "start_board"]

# Before any command of a session: the board's own home, programs and environment.
_SESSION = """#!/bin/sh
cd '{home}' || exit 1
echo $PPID > '{home}/../session.pid'
echo "welcome to the board"
exec env -i HOME='{home}' PATH='{programs}':/usr/bin:/bin sh -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclass(frozen=True)
class Board:
    """A server that runs.

    Attributes:
        host: As ``edgelm deploy`` takes it.
        home: Where a session begins.
        programs: First on the sessions' PATH.
        ssh_config: Lets the client in.
    """

    host: str
    home: Path
    programs: Path
    ssh_config: Path

    def install(self, name: str, script: str) -> Path:
        """Put a shell script onto the board's PATH."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def session_pid(self) -> int:
        """Return the process of sshd that serves the latest session."""
        return int((self.home.parent / "session.pid").read_text())

    def files(self) -> set[str]:
        """Return every name in the home, hidden ones too."""
        return {path.name for path in self.home.iterdir()}


def find_sshd() -> str | None:
    """Return the server's program, or None."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def start_board(folder: Path) -> Iterator[Board]:
    """Run a server of the current user, with keys of its own, until the block ends."""
    home, programs = folder / "board home", folder / "programs"
    home.mkdir(parents=True)
    programs.mkdir()
    session = folder / "session.sh"
    session.write_text(_SESSION.format(home=home, programs=programs))
    session.chmod(0o755)
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server_config = folder / "sshd_config"
    server_config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f'ForceCommand "{session}"\nPermitRootLogin yes\n'
    )
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    ssh_config = folder / "ssh_config"
    ssh_config.write_text(
        f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {folder / 'known_hosts'}\n"
        "GlobalKnownHostsFile none\nStrictHostKeyChecking yes\n"
        "KexAlgorithms curve25519-sha256\n"  # the default one costs 0.25 s of processor a session
    )
    log = folder / "sshd.log"
    command = [find_sshd() or "sshd", "-D", "-f", str(server_config), "-E", str(log)]
    process = subprocess.Popen(command)
    try:
        _wait_until_it_listens(port, process, log)
        yield Board(f"ssh://127.0.0.1:{port}", home, programs, ssh_config)
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"sshd ended: {log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("sshd does not listen")
