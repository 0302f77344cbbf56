"""Writing a result: beside its place first, renamed into it when it is whole, never over a file unasked."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from edgelm.errors import OutputError

__all__ = ["RESERVE_BYTES", "reserved", "write_text"]

RESERVE_BYTES = 8 << 20
"""What a run takes at most: a hundred thousand queries, at some 60 bytes each."""


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


@contextlib.contextmanager
def reserved(path: Path | None, size_bytes: int = RESERVE_BYTES) -> Iterator[None]:
    """Keep room for a result on the disk while it is measured, and free it at the end.

    A disk that fills up meanwhile does not cost the result then, and one that is full already is told before an hour of
    measuring, not after it.

    Args:
        path: The result; None writes none, and needs none.
        size_bytes: The room.

    Raises:
        OutputError: There is no such room, or the folder cannot be written to.
    """
    if path is None:
        yield
        return
    held = path.with_name(f".{path.name}.{secrets.token_hex(4)}.room")
    try:
        try:
            with held.open("xb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
                else:
                    file.write(bytes(size_bytes))
        except OSError as error:
            raise OutputError(
                f"There is no room for {path} ({error.strerror}): {size_bytes / 1e6:.0f} MB are kept free for it while it is "
                "measured. Choose another place."
            ) from error
        yield
    finally:
        held.unlink(missing_ok=True)
