"""Writing a bundle so that there is a whole one at the end, or none.

Everything is made in a hidden folder beside the output, on the same disk, and renamed into place as the last step. An
error, Ctrl-C or a full disk leaves the output as it was.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import uuid
import zipfile
from pathlib import Path
from types import TracebackType

from edgelm.bundle.checks import MANIFEST, check_manifest, check_name, hash_file
from edgelm.bundle.manifest import FileRecord, Manifest
from edgelm.bundle.reader import open_bundle
from edgelm.errors import OutputError

__all__ = ["SUFFIX", "BundleWriter", "pack"]

SUFFIX = ".edgelm"

# Of an OSError that says something about the disk, not about the code that met it.
_DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM))


class BundleWriter:
    """A bundle in the making.

    >>> with BundleWriter(Path("intents.edgelm"), force=False) as writer:
    ...     emit_model(writer.folder / "model.tflite")
    ...     writer.finish(manifest)

    Leaving the block without `finish`, or by any exception, removes what was made.

    Args:
        output: The bundle to make, ``NAME.edgelm``, in a folder that exists.
        force: Replace a bundle that is there. The old one stays until the new one is whole.

    Raises:
        OutputError: The output exists, is no place for a bundle, or the disk is full; before any work starts where that
            can be known.
    """

    def __init__(self, output: Path, *, force: bool) -> None:
        self._output = _checked_output(output, force=force)
        self._staging = self._output.with_name(f".{self._output.name}.{uuid.uuid4().hex[:8]}")
        self._force = force
        self._finished = False

    @property
    def folder(self) -> Path:
        """Where the files of the bundle are to be put, by plain names."""
        return self._staging

    def finish(self, manifest: Manifest) -> Manifest:
        """Complete the manifest with every file's size and SHA-256, write it, and put the bundle into place.

        Args:
            manifest: All but `Manifest.files`, which is replaced.

        Returns:
            The manifest as it was written.

        Raises:
            BundleError: The manifest does not agree with itself or with the files.
            OutputError: The disk is full, or the output appeared in the meantime.
        """
        files = {}
        for path in sorted(self._staging.iterdir()):
            check_name(path.name)
            files[path.name] = FileRecord(path.stat().st_size, hash_file(path))
        complete = dataclasses.replace(manifest, files=files)
        check_manifest(complete)
        Manifest.from_json(complete.to_json())  # what cannot be read again must not reach a device
        (self._staging / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
        for path in (*self._staging.iterdir(), self._staging):
            _sync(path)
        _move_into_place(self._staging, self._output, force=self._force)
        self._finished = True
        return complete

    def __enter__(self) -> BundleWriter:
        try:
            self._staging.mkdir()
        except OSError as error:
            raise OutputError(f"{self._output} cannot be written ({error.strerror}).") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished:
            shutil.rmtree(self._staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise OutputError(f"{self._output} cannot be written ({error.strerror}). Nothing was changed.") from error


def pack(bundle: str | Path, output: str | Path, *, force: bool) -> Path:
    """Make one zip file of a bundle, for transport: stored, not compressed, as weights hardly shrink.

    The same bundle gives the same bytes. Files that the manifest does not list stay out.

    Args:
        bundle: The bundle, which is checked first.
        output: The file to make, ``NAME.edgelm``.
        force: Replace what is there.

    Returns:
        `output`.

    Raises:
        BundleError: The bundle cannot be opened.
        OutputError: The output exists, or cannot be written.
    """
    target = _checked_output(Path(output), force=force)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    with open_bundle(bundle) as source:
        try:
            with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
                for name in (MANIFEST, *sorted(source.manifest.files)):
                    _store(archive, source.folder / name)
            _sync(staging)
            _move_into_place(staging, target, force=force)
        except OSError as error:
            raise OutputError(f"{target} cannot be written ({error.strerror}).") from error
        finally:
            staging.unlink(missing_ok=True)
    return target


def _store(archive: zipfile.ZipFile, path: Path) -> None:
    entry = zipfile.ZipInfo(path.name)  # dated 1980: the same bundle gives the same bytes
    entry.external_attr = 0o644 << 16
    entry.file_size = path.stat().st_size  # lets zipfile choose the 64-bit form where it is needed
    with path.open("rb") as source, archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target, 2**20)


def _checked_output(output: Path, *, force: bool) -> Path:
    """Return where to write, after all that can be known before the work starts."""
    if output.suffix != SUFFIX or output.name == SUFFIX:
        raise OutputError(f"A bundle is called NAME{SUFFIX}, and the output is called '{output.name}'.")
    target = output.absolute()
    if not target.parent.is_dir():
        raise OutputError(f"The folder {target.parent} does not exist: make it first.")
    if not os.path.lexists(target):
        return target
    if not force:
        raise OutputError(f"{output} exists. Give another name, or --force to replace it.")
    if target.is_symlink():
        raise OutputError(f"{output} is a link, which is not replaced: give the place that it points to.")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise OutputError(f"{output} is a folder and not a bundle: it is not replaced, not even with --force.")
    return target


def _move_into_place(staging: Path, output: Path, *, force: bool) -> None:
    """Rename `staging` to `output`; what was there is removed only after that."""
    if os.path.lexists(output) and not force:
        raise OutputError(f"{output} appeared while it was being made: it is not replaced without --force.")
    if not os.path.lexists(output) or (staging.is_file() and output.is_file()):
        staging.replace(output)
    else:
        # A folder that is not empty cannot be renamed over, so the old one steps aside first.
        aside = output.with_name(f"{staging.name}.old")
        output.replace(aside)
        try:
            staging.replace(output)
        except BaseException:
            aside.replace(output)
            raise
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()
    _sync(output.parent)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut after the rename leaves a whole bundle."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
