"""What must hold of a bundle before anything in it is used: names, manifest, files, zip entries.

A bundle is data that may come from anywhere. Nothing in it is ever run, and no name in it may lead out of its folder.
Bundles are flat, so a name is safe exactly if it is a plain file name of `NAME_RULE`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from edgelm.bundle.manifest import Artifact, CacheRecord, FileRecord, Manifest, Port, Signature
from edgelm.errors import BundleError, IntegrityError

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "NAME_RULE",
    "check_entries",
    "check_file",
    "check_manifest",
    "check_name",
    "copy_checked",
    "hash_file",
]

MANIFEST = "manifest.json"
NAME_RULE = "letters, digits, '.', '_' and '-', not starting with '.', at most 128 characters"

# A manifest is a few kilobytes; 500 labels and the operators of a large graph are still far below.
MAX_MANIFEST_BYTES = 16 * 2**20
# A model with external weights has a handful of files.
_MAX_ENTRIES = 1000
# Trained weights hardly shrink: 1.1 for float32, at most about 4 for pruned ones. Text (a tokenizer) reaches 10.
_MAX_RATIO = 100
_RATIO_APPLIES_FROM = 2**20
_CHUNK = 2**20

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = frozenset(
    ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)


def check_name(name: str) -> None:
    """Refuse a name that could lead out of the bundle, or that some file system takes for another.

    Raises:
        BundleError: It is not a plain file name.
    """
    if not _NAME.fullmatch(name) or name.casefold() == MANIFEST:
        raise BundleError(f"The manifest names the file {name!r}, which no bundle may hold (allowed: {NAME_RULE}).")


def check_manifest(manifest: Manifest) -> None:
    """Check that a manifest agrees with itself, so that a session can rely on it.

    Raises:
        BundleError: A name is unsafe, a file is not listed, a signature is not callable, or a figure is impossible.
    """
    for name, record in manifest.files.items():
        check_name(name)
        if record.size_bytes < 0 or not _SHA256.fullmatch(record.sha256):
            raise BundleError(f"manifest.json has no valid size or SHA-256 for '{name}': the bundle is damaged.")
    if len({name.casefold() for name in manifest.files}) < len(manifest.files):
        raise BundleError("manifest.json names two files that differ only in upper and lower case.")
    for what, name in _references(manifest):
        if name not in manifest.files:
            raise BundleError(f"manifest.json names '{name}' as its {what}, and does not list it among its files.")
    if not manifest.artifacts:
        raise BundleError("manifest.json lists no model file: there is nothing to run in this bundle.")
    for artifact in manifest.artifacts:
        _check_artifact(artifact)
    _check_labels(manifest)
    _check_generation(manifest)
    _check_translation(manifest)
    tokenizer = manifest.tokenizer
    if tokenizer is not None and (
        tokenizer.max_length < 1 or not 0 <= tokenizer.pad_id < max(tokenizer.vocabulary_size, 1)
    ):
        raise BundleError(
            f"manifest.json has an impossible tokenizer: pad id {tokenizer.pad_id} of {tokenizer.vocabulary_size} ids, "
            f"at most {tokenizer.max_length} tokens."
        )


def _references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield every mention of a file, with what it is mentioned as."""
    yield "golden vectors", manifest.golden
    if manifest.tokenizer is not None:
        yield "tokenizer", manifest.tokenizer.file
    if manifest.generation is not None and manifest.generation.chat_template is not None:
        yield "chat template", manifest.generation.chat_template
    if manifest.translation is not None and manifest.translation.target_tokenizer is not None:
        yield "target tokenizer", manifest.translation.target_tokenizer.file
    for artifact in manifest.artifacts:
        yield "model", artifact.file
        for signature in artifact.signatures:
            if signature.file is not None:
                yield "model", signature.file
        for name in artifact.data_files:
            yield "weights", name


def _check_artifact(artifact: Artifact) -> None:
    names = [signature.name for signature in artifact.signatures]
    if not names or len(set(names)) < len(names):
        raise BundleError(f"manifest.json gives '{artifact.file}' no signature, or the same one twice.")
    for signature in artifact.signatures:
        _check_signature(signature)
    if any(signature.cache is not None for signature in artifact.signatures):
        return  # prefill and decode differ in what they take
    lengths = [signature.sequence_length for signature in artifact.signatures if signature.sequence_length is not None]
    inputs = {tuple((port.name, port.role) for port in signature.inputs) for signature in artifact.signatures}
    if lengths != sorted(lengths) or len(inputs) > 1:
        raise BundleError(
            f"manifest.json gives '{artifact.file}' signatures with different inputs, or not in the order of their length."
        )


def _check_signature(signature: Signature) -> None:
    name, length = signature.name, signature.sequence_length
    if length is not None and length < 1:
        raise BundleError(f"manifest.json gives the signature '{name}' {length} tokens.")
    if not signature.inputs or not (signature.outputs or signature.kind in ("prefill", "encode")):
        raise BundleError(f"manifest.json gives the signature '{name}' no input or no output.")
    if (signature.kind in ("run", "encode", "reorder")) != (signature.cache is None):
        raise BundleError(
            f"manifest.json gives the signature '{name}' the kind '{signature.kind}', and no cache with it."
        )
    for cache in (signature.cache, signature.source):
        if cache is not None:
            _check_cache(name, cache)
    if signature.rows is not None and signature.rows < 1:
        raise BundleError(f"manifest.json gives the signature '{name}' {signature.rows} rows.")
    for ports in (signature.inputs, signature.outputs):
        if len({port.name for port in ports}) < len(ports):
            raise BundleError(f"manifest.json gives the signature '{name}' two ports of one name.")
        for port in ports:
            _check_port(name, port)
    for port in signature.inputs:
        # A file may take any length and still have to be fed one, where the model sees its padding.
        if port.role in ("token_ids", "padding_mask", "segment_ids") and port.shape[1:] not in ((None,), (length,)):
            raise BundleError(
                f"manifest.json gives '{port.name}' of '{name}' the shape {list(port.shape)}, and {length} tokens."
            )


def _check_cache(signature: str, cache: CacheRecord) -> None:
    """Check that a cache can be made and named."""
    patterns = (*cache.inputs, *cache.outputs)
    if (
        cache.layers < 1
        or cache.dtype not in _DTYPES
        or any(extent is not None and extent < 1 for extent in cache.shape)
    ):
        raise BundleError(f"manifest.json gives '{signature}' an impossible cache of the shape {list(cache.shape)}.")
    if any(pattern.count("{i}") != 1 for pattern in patterns):
        raise BundleError(f"manifest.json names the cache of '{signature}' {', '.join(patterns)}, without '{{i}}'.")


def _check_generation(manifest: Manifest) -> None:
    record = manifest.generation
    if (manifest.task == "generate") != (record is not None):
        raise BundleError(f"manifest.json has the task '{manifest.task}', and no settings to go with it.")
    if record is None:
        return
    ids = (*record.stop_ids, *((record.start_id,) if record.start_id is not None else ()))
    if record.context_length < 2 or any(not 0 <= token < record.vocabulary_size for token in ids):
        raise BundleError(
            f"manifest.json has impossible settings: {record.context_length} positions, and the tokens {list(ids)} of "
            f"{record.vocabulary_size}."
        )
    for artifact in manifest.artifacts:
        if not any(signature.kind == "decode" for signature in artifact.signatures):
            raise BundleError(f"manifest.json gives '{artifact.file}' no signature that decodes, as its task needs.")


def _check_translation(manifest: Manifest) -> None:
    record = manifest.translation
    if (manifest.task in ("translate", "transcribe")) != (record is not None):
        raise BundleError(f"manifest.json has the task '{manifest.task}', and no settings to go with it.")
    if record is None:
        return
    ids = (*record.target_prefix, *record.stop_ids, *record.suppressed_ids)
    if (
        min(record.source_length, record.target_length) < 1
        or not 1 <= len(record.target_prefix) < record.target_length
        or any(not 0 <= token < record.vocabulary_size for token in ids)
        or (manifest.task == "transcribe") != (record.audio is not None)
    ):
        raise BundleError(
            f"manifest.json has impossible settings: {record.source_length} and {record.target_length} positions, and the "
            f"tokens {list(ids)} of {record.vocabulary_size}."
        )
    for artifact in manifest.artifacts:
        kinds = {signature.kind for signature in artifact.signatures}
        if not {"encode", "decode"} <= kinds:
            raise BundleError(f"manifest.json gives '{artifact.file}' no signatures that encode and decode.")


def _check_labels(manifest: Manifest) -> None:
    """Check that there is a label for each class; a single output is a choice between two."""
    if manifest.labels is None or manifest.task != "classify":
        return
    for artifact in manifest.artifacts:
        classes = artifact.signatures[0].outputs[0].shape[-1:]
        if classes not in ((None,), (len(manifest.labels),)) and (classes, len(manifest.labels)) != ((1,), 2):
            raise BundleError(
                f"manifest.json names {len(manifest.labels)} labels, and '{artifact.file}' gives {list(classes)} classes."
            )


def _check_port(signature: str, port: Port) -> None:
    if port.dtype not in _DTYPES:
        raise BundleError(f"manifest.json gives '{port.name}' of '{signature}' the unknown dtype '{port.dtype}'.")
    if any(extent is not None and extent < 0 for extent in port.shape):
        raise BundleError(
            f"manifest.json gives '{port.name}' of '{signature}' the impossible shape {list(port.shape)}."
        )


def check_entries(archive: zipfile.ZipFile) -> None:
    """Look at a zip's table of contents before anything of it is unpacked.

    Raises:
        BundleError: Too many entries, a name twice, a path, a link, an encrypted entry, or one that is a zip bomb.
    """
    entries = archive.infolist()
    if len(entries) > _MAX_ENTRIES:
        raise BundleError(
            f"The zip holds {len(entries):,} entries, and a bundle has at most {_MAX_ENTRIES}: not unpacked."
        )
    seen: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        if name.casefold() in seen:
            raise BundleError(f"The zip holds {name!r} twice: not unpacked.")
        seen.add(name.casefold())
        if name.endswith("/" + MANIFEST):
            raise BundleError(
                f"The zip has {name!r} where manifest.json must stand at the top: "
                "zip what is in the folder, not the folder, or use 'edgelm pack'."
            )
        if not _NAME.fullmatch(name):
            raise BundleError(f"The zip holds {name!r}, which is no plain file name ({NAME_RULE}): not unpacked.")
        _check_entry(entry)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BundleError(f"'{entry.filename}' in the zip is a link or a device, not a file: not unpacked.")
    if entry.flag_bits & 0x1:
        raise BundleError(f"'{entry.filename}' in the zip is encrypted: edgelm reads plain bundles only.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"'{entry.filename}' in the zip is neither stored nor deflated: use 'edgelm pack'.")
    if entry.file_size >= _RATIO_APPLIES_FROM and entry.file_size > _MAX_RATIO * max(entry.compress_size, 1):
        raise BundleError(
            f"'{entry.filename}' would unpack from {entry.compress_size:,} to {entry.file_size:,} bytes, which no model "
            "does: not unpacked."
        )


def check_file(path: Path, record: FileRecord) -> None:
    """Check one file of a folder against the manifest.

    Raises:
        IntegrityError: It is missing, is not a plain file, or is not the one that was written.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise IntegrityError(
            f"{path.name} is in the manifest and not in the bundle ({error.strerror}): copy the bundle again."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"{path.name} is a link or a folder, where the bundle must have a plain file.")
    if status.st_size != record.size_bytes:
        raise _size_differs(path.name, record.size_bytes, status.st_size)
    try:
        found = hash_file(path)
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read ({error.strerror}).") from error
    if found != record.sha256:
        raise _hash_differs(path.name, record.sha256, found)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    Raises:
        OSError: It cannot be read, or is a link.
    """
    # O_NOFOLLOW: what was checked not to be a link must not have become one.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_checked(source: IO[bytes], write: Callable[[bytes], object], name: str, record: FileRecord) -> None:
    """Copy a zip entry while its size and SHA-256 are checked; never more than the manifest's size is written.

    Raises:
        IntegrityError: It is not the file that was written.
    """
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > record.size_bytes:
            raise _size_differs(name, record.size_bytes, size)
        digest.update(chunk)
        write(chunk)
    if size != record.size_bytes:
        raise _size_differs(name, record.size_bytes, size)
    if digest.hexdigest() != record.sha256:
        raise _hash_differs(name, record.sha256, digest.hexdigest())


def _size_differs(name: str, wanted: int, found: int) -> IntegrityError:
    return IntegrityError(
        f"{name} is not the file that was written: it has {found:,} bytes, the manifest says {wanted:,}. "
        "Copy the bundle again."
    )


def _hash_differs(name: str, wanted: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"{name} is not the file that was written: its SHA-256 is {found[:12]}…, the manifest says {wanted[:12]}…. "
        "Copy the bundle again."
    )
