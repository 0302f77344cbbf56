"""Writing a result: beside its place first, renamed into it when it is whole, never over a file unasked."""

from __future__ import annotations

import secrets
from pathlib import Path

from edgelm.errors import OutputError

__all__ = ["write_text"]


def write_text(text: str, path: Path, *, force: bool) -> None:
    """Write a text file whole or not at all.

    Args:
        text: What it holds; written as UTF-8.
        path: Where; its folder must exist.
        force: Whether to replace a file that exists.

    Raises:
        OutputError: The file exists and `force` is not given, or it cannot be written.
    """
    if path.exists() and not force:
        raise OutputError(f"{path} exists already. Choose another name, or replace it with --force.")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            # "x" never follows a link that someone else put there; the umask decides who may read the file.
            with beside.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}). Choose a folder that exists and is yours."
        ) from error
