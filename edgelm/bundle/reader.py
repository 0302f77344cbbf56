"""Opening a bundle: a folder ``NAME.edgelm/``, or one zip file of the same layout.

Opening never runs anything, and believes nothing: the manifest is checked first, then the size and SHA-256 of every file
in it (about 1 GB/s). A file that the manifest does not list is ignored: it is not unpacked, and cannot be asked for.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO

from edgelm.bundle.checks import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    check_entries,
    check_file,
    check_manifest,
    copy_checked,
)
from edgelm.bundle.golden import GoldenCase, read_golden
from edgelm.bundle.manifest import FileRecord, Manifest
from edgelm.errors import BundleError, IntegrityError, OutputError

__all__ = ["Bundle", "open_bundle"]

_ZIP_START = b"PK\x03\x04"


class Bundle:
    """An opened bundle, all of its files checked. A context manager: `close` removes what was unpacked.

    Attributes:
        manifest: What it says about itself.
        folder: Where its files lie.
    """

    def __init__(self, manifest: Manifest, folder: Path, *, unpacked: bool) -> None:
        self.manifest = manifest
        self.folder = folder
        self._unpacked = unpacked

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest lists.

        Raises:
            BundleError: It lists no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"The bundle has no file '{name}'. It has: {', '.join(sorted(self.manifest.files))}.")
        return self.folder / name

    def golden(self) -> list[GoldenCase]:
        """Read the golden vectors.

        Raises:
            BundleError: Their file cannot be read.
        """
        return read_golden(self.path(self.manifest.golden))

    def close(self) -> None:
        """Remove what was unpacked from a zip; a folder stays as it is. Closing twice does nothing."""
        if self._unpacked:
            self._unpacked = False
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check every file of it.

    A zip is unpacked into a folder under ``TMPDIR``, which `Bundle.close` removes.

    Args:
        path: A folder or a zip file, usually ``NAME.edgelm``.

    Raises:
        BundleError: It is missing, is no bundle, is damaged, or comes from a newer edgelm.
        IntegrityError: A file in it is not the one that was written.
        OutputError: A zip cannot be unpacked, as the disk is full.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"There is no bundle at {path} ({reason}).") from error
    if stat.S_ISDIR(mode):
        return _open_folder(path)
    if stat.S_ISREG(mode):
        return _open_zip(path)
    raise BundleError(f"{path} is neither a folder nor a file.")


def _open_folder(path: Path) -> Bundle:
    file = path / MANIFEST
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{file} is a link or a folder, where a bundle has a plain file.")
        if status.st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} has {status.st_size:,} bytes: no manifest is that large.")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} has no manifest.json: it is not a bundle, or its copy was not finished.") from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror}).") from error
    manifest = _parse(content)
    for name, record in manifest.files.items():
        check_file(path / name, record)
    return Bundle(manifest, path, unpacked=False)


def _parse(content: bytes) -> Manifest:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"manifest.json is not UTF-8 text ({error.reason}): the bundle is damaged.") from error
    manifest = Manifest.from_json(text)
    check_manifest(manifest)
    return manifest


def _open_zip(path: Path) -> Bundle:
    try:
        with zipfile.ZipFile(path) as archive:
            check_entries(archive)
            manifest = _manifest_of(archive, path)
            return _unpack(archive, manifest)
    except zipfile.BadZipFile as error:
        raise BundleError(_why_no_zip(path, error)) from error
    except (zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise BundleError(f"{path} is a damaged zip file ({error}): copy it again.") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}).") from error


def _why_no_zip(path: Path, error: zipfile.BadZipFile) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(4) == _ZIP_START:
            return f"{path} is a zip file that was cut short or damaged ({error}): copy it again."
    return f"{path} is not a bundle: neither a folder nor a zip file."


def _manifest_of(archive: zipfile.ZipFile, path: Path) -> Manifest:
    try:
        entry = archive.getinfo(MANIFEST)
    except KeyError as error:
        raise BundleError(f"{path} has no manifest.json: this zip file is not a bundle.") from error
    if entry.file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json in {path} has {entry.file_size:,} bytes: no manifest is that large.")
    # Reads no more than the declared size, which was just checked: a longer stream is a bad checksum.
    return _parse(archive.read(entry))


def _unpack(archive: zipfile.ZipFile, manifest: Manifest) -> Bundle:
    """Unpack the files of the manifest, and nothing else, into a new folder."""
    names = set(archive.namelist())
    for name, record in manifest.files.items():
        if name not in names:
            raise IntegrityError(f"{name} is in the manifest and not in the zip: copy the bundle again.")
        if archive.getinfo(name).file_size != record.size_bytes:
            raise IntegrityError(
                f"{name} is not the file that was written: the zip says {archive.getinfo(name).file_size:,} bytes, "
                f"the manifest {record.size_bytes:,}. Copy the bundle again."
            )
    needed = sum(record.size_bytes for record in manifest.files.values())
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise OutputError(
            f"The bundle unpacks to {needed:,} bytes, and {tempfile.gettempdir()} has {free:,} left: "
            "set TMPDIR to a larger disk, or unzip the bundle into a folder and open that."
        )
    folder = Path(tempfile.mkdtemp(prefix="edgelm-"))
    bundle = Bundle(manifest, folder, unpacked=True)
    try:
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        for name, record in manifest.files.items():
            with archive.open(name) as source:
                _write_file(folder / name, source, record)
    except BaseException:
        bundle.close()
        raise
    return bundle


def _write_file(path: Path, source: IO[bytes], record: FileRecord) -> None:
    with path.open("wb") as target:

        def write(chunk: bytes) -> None:
            try:
                target.write(chunk)
            except OSError as error:
                raise OutputError(f"{path.name} cannot be unpacked into {path.parent} ({error.strerror}).") from error

        copy_checked(source, write, path.name, record)
