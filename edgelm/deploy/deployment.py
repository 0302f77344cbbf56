"""Copying a bundle so that the device has a whole, checked one at the end, or what it had before."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.bundle import Bundle, open_bundle
from edgelm.bundle.checks import MANIFEST, check_name, hash_file
from edgelm.deploy import scripts
from edgelm.deploy.adb import AdbConnection
from edgelm.deploy.address import Address, parse_address
from edgelm.deploy.connection import Answer, Connection, Progress, last_line
from edgelm.deploy.ssh import SshConnection
from edgelm.errors import DeviceError, IntegrityError, OutputError

__all__ = ["Deployed", "answer_of", "connect", "deploy"]

_SUFFIX = ".edgelm"
# A file takes whole blocks, and a folder one.
_BLOCK_BYTES = 4096
# A virtual environment, as Debian 12 and Raspberry Pi OS let pip install nowhere else.
_INSTALL = "python3 -m venv ~/edgelm && ~/edgelm/bin/pip install 'edgelm[litert]'"


@dataclass(frozen=True)
class Deployed:
    """A bundle on a device, every file's SHA-256 checked there.

    Attributes:
        device: As messages call it.
        path: Of the bundle there.
        machine: The device's architecture, as its kernel tells.
        size_bytes: Of its files.
        copied: False where the same bytes were there already.
        edgelm: The program on the device; None where there is none.
        version: What that program calls itself.
        report: What ``edgelm verify`` found there, as its JSON; see `edgelm_runtimes.VerifyReport`. None where the answers
            were not checked.
        unverified: Why not, and what to do; None where they were, or were not to be.
    """

    device: str
    path: str
    machine: str
    size_bytes: int
    copied: bool
    edgelm: str | None
    version: str | None
    report: Mapping[str, Any] | None
    unverified: str | None


@dataclass(frozen=True)
class _Found:
    """What was found on the device before anything was changed."""

    machine: str
    missing: tuple[str, ...]
    edgelm: str | None
    version: str | None
    writable: bool
    free_bytes: int | None
    present: str | None  # same, other (may be replaced) or foreign (never)
    path: str


def connect(address: Address, *, ssh_config: Path | None = None) -> Connection:
    """Return the way to a device. Nothing is sent yet.

    Args:
        address: The device.
        ssh_config: A file instead of ``~/.ssh/config``.
    """
    if address.kind == "adb":
        return AdbConnection(address.name, address.host)
    return SshConnection(address.name, address.port, ssh_config)


def deploy(
    bundle: str | Path,
    host: str,
    *,
    force: bool = False,
    verify: bool = True,
    edgelm: str | None = None,
    ssh_config: Path | None = None,
    progress: Progress | None = None,
) -> Deployed:
    """Copy a bundle to a device, check it there, and put it into place.

    The files go to a hidden folder beside the place, where their SHA-256 and then, by the device's own ``edgelm verify``,
    its answers are checked; only then is it renamed. A failure leaves the device as it was.

    Args:
        bundle: A folder or a zip file. It becomes a folder there, which opens faster.
        host: See `parse_address`.
        force: Replace another bundle of that name there.
        verify: Whether the device has to check the answers too, if it has edgelm.
        edgelm: The program there, such as ``~/venv/bin/edgelm``; looked for otherwise.
        ssh_config: A file instead of ``~/.ssh/config``.
        progress: Told the bytes that were sent.

    Raises:
        InputError: `host` is no address.
        BundleError: The bundle here cannot be opened.
        DeviceError: The device is not reached, refuses, has no space, or is lost.
        OutputError: Another bundle of that name is there, and `force` is not given.
        IntegrityError: It does not give its answers there.
    """
    address = parse_address(host)
    connection = connect(address, ssh_config=ssh_config)
    with open_bundle(bundle) as opened:
        name = _name_there(Path(bundle), opened)
        files = {MANIFEST: opened.folder / MANIFEST, **{file: opened.path(file) for file in opened.manifest.files}}
        sums = "\n".join(f"{hash_file(path)} {file}" for file, path in files.items())
        found = _look(connection, address.folder, name, sums, edgelm)
        _check(found, connection.name, name, files, force=force)
        program = found.edgelm if verify else None
        if found.present == "same":
            answer = _verify_in_place(connection, address.folder, name, program)
        else:
            part = f".{name}.{secrets.token_hex(4)}.part"
            arguments = [address.folder, part, name, sums, program or "", "yes" if force else "no"]
            answer = connection.deliver(files, scripts.PLACE, arguments, progress=progress)
            _raise_for(answer, connection.name, name)
    report = answer_of(answer) if program is not None else None
    return Deployed(
        device=connection.name,
        path=found.path,
        machine=found.machine,
        size_bytes=sum(record.size_bytes for record in opened.manifest.files.values()),
        copied=found.present != "same",
        edgelm=found.edgelm,
        version=found.version,
        report=report,
        unverified=_why_unverified(address, edgelm) if verify and report is None else None,
    )


def _name_there(path: Path, bundle: Bundle) -> str:
    name = path.name if path.suffix == _SUFFIX else f"{bundle.manifest.name}{_SUFFIX}"
    check_name(name)
    return name


def _look(connection: Connection, folder: str, name: str, sums: str, edgelm: str | None) -> _Found:
    wanted = "" if edgelm is None else edgelm.removeprefix("~/")
    answer = connection.run(scripts.LOOK, [folder, name, sums, wanted])
    lines = answer.output.partition("edgelm-look\n")[2].splitlines()
    pairs = [(key, value) for key, _, value in (line.partition("=") for line in lines)]
    facts = dict(pairs)
    if answer.status != 0 or "machine" not in facts:
        said = last_line(answer.errors) or last_line(answer.output) or "nothing"
        raise DeviceError(
            f"{connection.name} has no usable shell: it answered {said[:200]!r} to a script. Can its user run 'sh'?"
        )
    # used, available and the share that is used, whatever the names around them
    free = re.search(r"\d+\s+\d+\s+(\d+)\s+\d+%", facts.get("df", ""))
    return _Found(
        machine=facts["machine"],
        missing=tuple(value for key, value in pairs if key == "missing"),
        edgelm=facts.get("edgelm"),
        version=facts.get("version"),
        writable=facts.get("writable") == "yes",
        free_bytes=int(free[1]) * 1024 if free else None,
        present=facts.get("present"),
        path=facts.get("path") or (name if folder == "." else f"{folder}/{name}"),
    )


def _check(found: _Found, device: str, name: str, files: Mapping[str, Path], *, force: bool) -> None:
    """Refuse what can be known to fail, before anything is sent."""
    if found.missing:
        raise DeviceError(
            f"{device} lacks {', '.join(found.missing)}, which the copy is checked with: install it there."
        )
    if found.present == "foreign":
        raise OutputError(f"{found.path} on {device} is a link or a folder that is no bundle: it is never replaced.")
    if found.present == "other" and not force:
        raise _exists(device, found.path)
    if found.present == "same":
        return
    if not found.writable:
        raise DeviceError(f"{found.path} on {device} may not be written by this user. Choose another folder.")
    needed = sum(-(-path.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES for path in files.values()) + _BLOCK_BYTES
    if found.free_bytes is not None and needed > found.free_bytes:
        raise DeviceError(
            f"{name} takes {needed:,} bytes, and {device} has {found.free_bytes:,} left there: make space, or choose another "
            "folder."
        )


def _verify_in_place(connection: Connection, folder: str, name: str, program: str | None) -> Answer:
    """Verify a bundle that is there already."""
    if program is None:
        return Answer(0, "", "")
    answer = connection.run(scripts.BENCHMARK, [folder, name, program, "verify"])
    if answer.status != 0:
        raise IntegrityError(
            f"{name} is on {connection.name}, byte for byte, and does not pass its check there ({_why(answer)})."
        )
    return answer


def _raise_for(answer: Answer, device: str, name: str) -> None:
    """Turn the exit status of a delivery into an error."""
    said = last_line(answer.errors) or "no reason was told"
    if answer.status == 0:
        return
    if answer.status == scripts.EXISTS:
        raise _exists(device, name)
    if answer.status == scripts.NOT_VERIFIED:
        raise IntegrityError(
            f"{name} does not pass its check on {device} ({_why(answer)}): it was not put into place. To copy it anyway, "
            "leave the check out with --no-verify."
        )
    if answer.status == scripts.NOT_WHOLE:
        raise DeviceError(
            f"{name} did not arrive whole on {device} ({said}): nothing was put into place. Copy it again."
        )
    if "No space left" in answer.errors:
        raise DeviceError(f"The space on {device} ran out while {name} was copied: nothing was put into place.")
    raise DeviceError(f"{name} could not be put into place on {device} ({said}). What was there is unchanged.")


def _exists(device: str, path: str) -> OutputError:
    return OutputError(
        f"{path} exists on {device} with other content. Choose another folder, or replace it with --force."
    )


def answer_of(answer: Answer) -> Any:
    """Return the JSON that edgelm printed on the device.

    Raises:
        DeviceError: It printed none.
    """
    text = answer.output.partition(f"{scripts.ANSWER_MARK}\n")[2]
    try:
        return json.loads(text)
    except ValueError as error:
        said = last_line(answer.errors) or last_line(text) or "nothing"
        raise DeviceError(
            f"edgelm on the device did not answer with JSON ({said[:200]}). Is it an older one?"
        ) from error


def _why(answer: Answer) -> str:
    """Return why `edgelm verify` refused: its report's reasons, or the line that it ended with."""
    try:
        report = answer_of(answer)
        reasons = [f"{check['runtime']} {check['status']}: {check['reason']}" for check in report["runtimes"]]
        tokenizer = report.get("tokenizer")
        if tokenizer is not None and not tokenizer["passed"]:
            reasons.insert(0, f"tokenizer: {tokenizer['reason']}")
        failed = [reason for reason in reasons if " passed: " not in reason]
        return "; ".join(failed) or last_line(answer.errors)
    except (DeviceError, KeyError, TypeError):
        return last_line(answer.errors).removeprefix("edgelm: ").rstrip(".") or "no reason was told"


def _why_unverified(address: Address, edgelm: str | None) -> str:
    if edgelm is not None:
        return f"there is no program {edgelm} on {address.name}: its checksums are right, its answers are not checked."
    if address.kind == "adb":
        return (
            f"{address.name} has the files, and their checksums are right; its answers are not checked, as Android's shell "
            "runs no Python."
        )
    return (
        f"edgelm is not installed on {address.name}: the checksums are right, the answers are not checked. "
        f"Install it there with: {_INSTALL}"
    )
