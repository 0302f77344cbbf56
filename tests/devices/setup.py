"""Install what the device lanes need into a cache folder: ``python tests/devices/setup.py [LANE …]``.

Nothing outside ``$XDG_CACHE_HOME/edgelm-devices`` is changed. A lane that cannot be set up gets a file with the reason,
and its tests are skipped with it. Measured on two cores: 2 minutes and 1.2 GB for all of them.

- ``pi64``: a 64-bit Raspberry Pi OS's Python (Debian 12, arm64) in QEMU's user mode, with the wheels of edgelm's device extras.
- ``pi32``: the 32-bit one (armhf), with tflite-runtime.
- ``gpu``: SwiftShader, Google's Vulkan driver in software, and ONNX Runtime with WebGPU.
- ``npu``: Qualcomm's emulator of its Hexagon processor, in the ONNX Runtime plugin that PyPI has.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from debian import CannotInstallError, run, unpack_packages
from lanes import CACHE, REPOSITORY, reason_file

__all__ = ["LANES", "main"]

# QEMU 7 of Debian 12 gives wrong int8 products with -cpu max, and its /proc/cpuinfo crashes both runtimes.
_QEMU_SUITE = "trixie"
_BOARD_SUITE = "bookworm"
_BOARD_PYTHON = "3.11"
_PYTHON_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1", "zlib1g")
# What pip is told that the board has: glibc 2.36 takes each of these.
_GLIBC = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 37)))


def _qemu() -> None:
    if platform.machine() != "x86_64":
        raise CannotInstallError(f"the emulator is fetched for x86-64, and this machine is {platform.machine()}")
    if not (CACHE / "qemu").is_dir():
        # It is linked statically, so what the package depends on is not needed.
        unpack_packages(
            CACHE / "qemu", suite=_QEMU_SUITE, architecture="amd64", packages=["qemu-user"], dependencies=False
        )


def _board(lane: str, architecture: str, packages: Sequence[str]) -> None:
    _qemu()
    root = CACHE / lane / "root"
    if not root.is_dir():
        root.parent.mkdir(exist_ok=True)
        unpack_packages(root, suite=_BOARD_SUITE, architecture=architecture, packages=[*_PYTHON_PACKAGES, *packages])


def _wheels(folder: Path, machine: str, requirements: Sequence[str], *, dependencies: bool = True) -> None:
    """Install wheels of the board's architecture: what `pip install` takes there."""
    stamp = folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    part = folder.with_name(f"{folder.name}.part")
    for old in (folder, part):
        shutil.rmtree(old, ignore_errors=True)
    platforms = [word for version in _GLIBC for word in ("--platform", f"{version}_{machine}")]
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", _BOARD_PYTHON, *platforms]
    options += [] if dependencies else ["--no-deps"]
    run([*_PIP, "install", *options, "--target", part, *requirements], what=f"the wheels for {machine}")
    (part / "requirements.txt").write_text(wanted)
    part.replace(folder)


_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def _own_wheel() -> Path:
    """Build edgelm's wheel: what a device installs, never the working tree."""
    folder = CACHE / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    run([*_PIP, "wheel", "--no-deps", "--wheel-dir", folder, REPOSITORY], what="building edgelm's wheel")
    return next(folder.glob("edgelm-*.whl"))


def _own(lane: str, wheel: Path) -> None:
    """Put today's edgelm beside the packages that change seldom."""
    folder = CACHE / lane / "own"
    shutil.rmtree(folder, ignore_errors=True)
    run([*_PIP, "install", "--no-deps", "--target", folder, wheel], what="installing edgelm's wheel")


def _requirements(*extras: str) -> list[str]:
    """Return what edgelm's wheel asks for on a device, from pyproject.toml."""
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]


def _pi64() -> None:
    _board("pi64", "arm64", [])
    _wheels(CACHE / "pi64" / "site-packages", "aarch64", _requirements("litert", "onnx"))
    _own("pi64", _own_wheel())


def _pi32() -> None:
    # PyPI has no NumPy for armv7l; Raspberry Pi OS brings its own, as Debian does.
    _board("pi32", "armhf", ["python3-numpy", "libatomic1"])
    requirements = [need for need in _requirements("tflite") if not need.startswith("numpy")]
    # rich and jinja2 need these, which --no-deps does not bring; NumPy must not come along with tflite-runtime.
    requirements += ["markupsafe", "markdown-it-py", "mdurl", "pygments"]
    _wheels(CACHE / "pi32" / "site-packages", "armv7l", requirements, dependencies=False)
    _own("pi32", _own_wheel())


def _gpu() -> None:
    if not (CACHE / "gpu" / "root").is_dir():
        (CACHE / "gpu").mkdir(exist_ok=True)
        unpack_packages(
            CACHE / "gpu" / "root",
            suite=f"{_BOARD_SUITE}-security",
            architecture="amd64",
            packages=["chromium-common"],
            dependencies=False,
        )
    _native(CACHE / "gpu" / "site-packages", ["onnxruntime-webgpu"])


def _npu() -> None:
    _native(CACHE / "npu" / "site-packages", ["onnxruntime-qnn"])


def _native(folder: Path, requirements: Sequence[str]) -> None:
    """Install a variant of ONNX Runtime for this machine, out of the way of the one that is installed."""
    if folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    options = ["--only-binary=:all:", "--no-deps", "--target", part]
    run([*_PIP, "install", *options, *requirements], what=", ".join(requirements))
    part.replace(folder)


LANES: dict[str, Callable[[], None]] = {"pi64": _pi64, "pi32": _pi32, "gpu": _gpu, "npu": _npu}


def main(names: Sequence[str]) -> int:
    """Set lanes up; return 2 for an unknown name, otherwise 0: a lane that cannot be had is no failure."""
    unknown = [name for name in names if name not in LANES]
    if unknown:
        sys.stderr.write(f"No lane is called '{unknown[0]}'. Known: {', '.join(LANES)}.\n")
        return 2
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in names or LANES:
        ready = CACHE / f"{name}.ready"
        for file in (ready, reason_file(name)):
            file.unlink(missing_ok=True)
        try:
            LANES[name]()
        except CannotInstallError as error:
            reason_file(name).write_text(f"{error}\n", encoding="utf-8")
            sys.stderr.write(f"{name}: left out, {error}\n")
        else:
            ready.touch()
            sys.stderr.write(f"{name}: ready in {CACHE}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
