"""Debian packages of any release and architecture, unpacked into a folder: no root, no chroot, nothing of this machine changed.

apt-get resolves and downloads with a state of its own, and dpkg only unpacks.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CannotInstallError", "run", "unpack_packages"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR = "http://deb.debian.org"


class CannotInstallError(Exception):
    """What a lane needs cannot be had here. Its message is the reason that its tests are skipped with."""


def run(arguments: Sequence[str | Path], *, what: str) -> None:
    """Run a program of the set-up.

    Raises:
        CannotInstallError: It failed; with the last line that it printed.
    """
    try:
        done = subprocess.run([str(word) for word in arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotInstallError(f"{what}: {arguments[0]} cannot be run ({error.strerror})") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise CannotInstallError(f"{what}: {said[-1] if said else f'status {done.returncode}'}")


def unpack_packages(
    folder: Path, *, suite: str, architecture: str, packages: Sequence[str], dependencies: bool = True
) -> None:
    """Download packages of Debian and unpack them into a folder.

    Args:
        folder: The root of the unpacked files; it must not exist.
        suite: Such as ``bookworm``, or ``bookworm-security``.
        architecture: Debian's name, such as ``arm64``.
        packages: Their names.
        dependencies: Whether to take what they depend on too.

    Raises:
        CannotInstallError: There is no apt here, or no network, or no such package.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise CannotInstallError(f"{tool} is not installed, and the packages are Debian's")
    if not _KEYRING.is_file():
        raise CannotInstallError(f"{_KEYRING} is missing: install debian-archive-keyring")
    state = folder.with_name(f"{folder.name}.apt")
    archives = state / "cache" / "archives"
    for part in (archives / "partial", state / "lists" / "partial"):
        part.mkdir(parents=True, exist_ok=True)
    (state / "status").write_text("")
    archive = "debian-security" if suite.endswith("-security") else "debian"
    line = f"deb [signed-by={_KEYRING}] {_MIRROR}/{archive} {suite} main\n"
    # A security suite holds only what was mended; what that depends on is in the release itself.
    if archive == "debian-security":
        line += line.replace("debian-security", "debian").replace(suite, suite.removesuffix("-security"))
    (state / "sources.list").write_text(line)
    apt = _apt(state, architecture)
    run([*apt, "update"], what=f"the package list of {suite}")
    if dependencies:
        command = [*apt, "--yes", "--download-only", "--no-install-recommends", "install", *packages]
        run(command, what=f"the packages {', '.join(packages)} of {suite}")
    else:
        # "download" puts the files into the working folder, which no option changes.
        command = ["env", "--chdir", str(archives), *apt, "download", *packages]
        run(command, what=f"the packages {', '.join(packages)} of {suite}")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for package in sorted(archives.glob("*.deb")):
        run(["dpkg", "--extract", package, part], what=f"unpacking {package.name}")
    part.replace(folder)
    shutil.rmtree(state)


def _apt(state: Path, architecture: str) -> list[str]:
    options = {
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        # Otherwise apt becomes the user _apt, who may not enter a cache folder of somebody's home.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return ["apt-get", "--quiet", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
