"""LiteRT on processors that its GPU library kills: the Raspberry Pi 4, the Zero 2 W and every other Arm core before 2018.

The aarch64 wheel has ``libLiteRtWebGpuAccelerator.so``, compiled for newer cores. LiteRT loads it whenever a model is opened,
on the CPU too, and it ends the process where an instruction is missing ("This binary was compiled with lse enabled, but this
feature is not available on this processor", LiteRT issues 5675 and 6083, version 2.3.0). `CompiledModel` has no option
against that: its environment's `runtime_path` is not the only place that is searched. So on such a processor the package is
imported from a folder of links to its files, all but that one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import uuid
from pathlib import Path

from edgelm_device_profiles.cpuinfo import parse_cpuinfo

from edgelm.errors import RuntimeUnavailableError

__all__ = ["ACCELERATOR", "NEEDED_FLAGS", "linked_without_accelerator", "prepare_litert"]

ACCELERATOR = "libLiteRtWebGpuAccelerator.so"

# What the library's own start asks for: aes, lse, crc, dotprod, fp16, rdm, rcpc and sha2, by their names in Linux.
NEEDED_FLAGS = frozenset(("aes", "atomics", "crc32", "asimddp", "asimdhp", "asimdrdm", "lrcpc", "sha2"))

_PACKAGE = "ai_edge_litert"
_CPUINFO = Path("/proc/cpuinfo")


def prepare_litert() -> None:
    """Make ``import ai_edge_litert`` safe on this processor; to be called before the first such import.

    Raises:
        RuntimeUnavailableError: The processor needs it, and no folder of links can be made.
    """
    if platform.machine() != "aarch64" or _PACKAGE in sys.modules:
        return
    try:
        flags = parse_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace")).flags
    except OSError:
        return  # nothing is known of the processor
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None or set(flags) >= NEEDED_FLAGS:
        return
    package = Path(spec.origin).parent
    if (package / ACCELERATOR).exists():
        sys.path.insert(0, str(linked_without_accelerator(package, _cache_folder())))


def linked_without_accelerator(package: Path, cache: Path) -> Path:
    """Return a folder in which the package is importable without its GPU library.

    Args:
        package: The installed package.
        cache: Where the folder is made, unless an earlier call made it.

    Raises:
        RuntimeUnavailableError: It cannot be made there.
    """
    # Another installation, or another version in the same place, gets links of its own.
    state = f"{package}:{(package / ACCELERATOR).stat().st_mtime_ns}"
    folder = cache / f"litert-cpu-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    part = cache / f"{folder.name}.{uuid.uuid4().hex[:8]}"
    try:
        try:
            (part / _PACKAGE).mkdir(parents=True)
            for entry in package.iterdir():
                if entry.name not in (ACCELERATOR, "__pycache__"):
                    (part / _PACKAGE / entry.name).symlink_to(entry)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():
            return folder  # another process was faster
        raise RuntimeUnavailableError(
            f"LiteRT's GPU library ends every process on this processor, and edgelm cannot make links without it in {cache} "
            f"({error.strerror}). Set XDG_CACHE_HOME to a folder of yours, or move {package / ACCELERATOR} away."
        ) from error
    return folder


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgelm"
