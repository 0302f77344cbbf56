"""LiteRT on processors that its GPU library kills; the library's own word on it is in tests/devices."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from edgelm_runtimes import litert_package
from edgelm_runtimes.litert_package import ACCELERATOR, linked_without_accelerator, prepare_litert

from edgelm.errors import RuntimeUnavailableError

# /proc/cpuinfo of a Raspberry Pi 4 and a Raspberry Pi 5.
PI_4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
PI_5 = (
    "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
    "dcpop asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed package, of whose files one must not be loaded."""
    folder = tmp_path / "site" / "ai_edge_litert"
    (folder / "tools").mkdir(parents=True)
    for name in ("__init__.py", "libLiteRt.so", ACCELERATOR, "tools/thing.py"):
        (folder / name).write_text(f"name = {name!r}\n")
    return folder


def _names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "ai_edge_litert").iterdir()}


def test_everything_is_linked_but_the_library(package: Path, tmp_path: Path) -> None:
    folder = linked_without_accelerator(package, tmp_path / "cache")
    assert _names(folder) == {"__init__.py", "libLiteRt.so", "tools"}
    assert linked_without_accelerator(package, tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.parametrize(("cpuinfo", "machine", "linked"), [
    (PI_4, "aarch64", True), (PI_5, "aarch64", False), (PI_4, "x86_64", False), ("", "aarch64", True),
])  # fmt: skip
def test_only_a_processor_that_lacks_an_instruction_gets_the_links(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, machine: str, linked: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(litert_package, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "ai_edge_litert"]:
        monkeypatch.delitem(sys.modules, name)
    prepare_litert()
    assert (tmp_path / "cache").exists() == linked
    assert (sys.path[0] != str(package.parent)) == linked


def test_a_cache_that_cannot_be_written_is_told(package: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RuntimeUnavailableError, match=f"Set XDG_CACHE_HOME .* or move .*{ACCELERATOR} away"):
        linked_without_accelerator(package, tmp_path / "cache")
