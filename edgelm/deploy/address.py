"""What a device is called on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgelm.errors import InputError

__all__ = ["ANDROID_FOLDER", "Address", "parse_address"]

# The one folder of a phone that adb's user may write to and run from.
ANDROID_FOLDER = "/data/local/tmp/edgelm"

_ADB = re.compile(r"adb:(?P<serial>[^/]*?)(?::(?P<folder>/.*))?")
_URI = re.compile(r"ssh://(?P<host>[^/:\[\]]+|(?:[^/@\[\]]+@)?\[[^\]]+\])(?::(?P<port>\d+))?(?:/(?P<folder>.*))?")
_SSH = re.compile(r"(?P<host>[^:/\[\]]+|(?:[^:/@\[\]]+@)?\[[^\]]+\])(?::(?P<folder>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Address:
    """A device, and a folder on it.

    Attributes:
        kind: How it is reached.
        host: ``[USER@]HOST`` as ssh takes it, or the phone's serial number; "" is the only phone that is connected.
        port: Of ssh; None leaves it to ssh's configuration.
        folder: Where bundles go; a relative one is below the user's home.
    """

    kind: Literal["ssh", "adb"]
    host: str
    port: int | None
    folder: str

    @property
    def name(self) -> str:
        """The device as messages call it."""
        return self.host if self.kind == "ssh" else f"adb:{self.host}"


def parse_address(text: str) -> Address:
    """Read a device's address.

    Args:
        text: ``[USER@]HOST[:FOLDER]`` or ``ssh://[USER@]HOST[:PORT][/FOLDER]`` of a board, where an IPv6 address stands in
            brackets; ``adb:[SERIAL][:/FOLDER]`` of a phone. A folder is relative to the home, unless it begins with ``/``
            (in a URI: with a second one).

    Raises:
        InputError: It is none of these.
    """
    if found := _ADB.fullmatch(text):
        address = Address("adb", found["serial"], None, found["folder"] or ANDROID_FOLDER)
    elif found := _URI.fullmatch(text) or (None if text.startswith("ssh://") else _SSH.fullmatch(text)):
        port = found.groupdict().get("port")
        address = Address("ssh", _without_brackets(found["host"]), int(port) if port else None, _home(found["folder"]))
    else:
        raise _not_an_address(text)
    # What begins with a hyphen would be an option of ssh, and could run a program here.
    user, _, host = address.host.rpartition("@")
    unsafe = any(part.startswith("-") for part in (address.host, user, host)) or "\0" in text or "\n" in text
    if unsafe or (address.kind == "ssh" and not host) or re.search(r"\s", address.host):
        raise _not_an_address(text)
    if address.port is not None and not 0 < address.port < 65536:
        raise InputError(f"{address.port} is no port: ssh's is between 1 and 65535.")
    return address


def _home(folder: str | None) -> str:
    """Return a folder relative to the home, in which an ssh session begins."""
    if not folder or folder == "~":
        return "."
    folder = folder.removeprefix("~/")
    # "cd -x" would read an option.
    return f"./{folder}" if folder.startswith(("-", "~")) else folder


def _without_brackets(host: str) -> str:
    return host.replace("[", "").replace("]", "")


def _not_an_address(text: str) -> InputError:
    return InputError(
        f"'{text}' is no device: name a board as user@host, user@host:folder or ssh://user@host:port/folder, and a phone "
        "as adb: or adb:SERIAL."
    )
