"""Whether a run's numbers are those of the hardware, or of a program that plays it.

Under QEMU's user emulation a foreign processor's program runs on this machine's kernel, and QEMU answers for the
processor. What gives it away, in the order of the questions:

1. the kernel's own architecture (``/proc/sys/kernel/arch``), which QEMU does not forge: another family than the process's;
2. the kernel's release, whose name ends in its architecture on many distributions (``6.1.0-28-amd64``, ``….x86_64``);
3. a handler in ``/proc/sys/fs/binfmt_misc`` that gives programs of this very architecture to QEMU: where the processor runs
   them itself nobody registers one.

A kernel that is emulated whole (QEMU's system emulation) names itself in the device tree or in its DMI tables, and then
only the processor's model tells a virtual machine from an emulated one: QEMU calls what it emulates ``QEMU``, ``TCG`` or
``qemu64``. A software driver of a GPU has a name: SwiftShader, llvmpipe, lavapipe, softpipe. What
hides all of that is not found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgelm_runtimes.machine import MachineFacts
from edgelm_runtimes.program import ProgramFacts

from edgelm.bench.findings import Evidence

__all__ = ["FoundEvidence", "find_evidence"]

_ROOT = Path("/")
_SOFTWARE_DRIVERS = re.compile(r"swiftshader|llvmpipe|lavapipe|softpipe|software rasterizer", re.IGNORECASE)
_EMULATED_CPU = re.compile(r"\bTCG\b|QEMU Virtual CPU|qemu64|qemu32", re.IGNORECASE)
_RELEASE_FAMILIES = (
    ("x86", re.compile(r"[-.](amd64|x86_64|i[3-6]86)$")),
    ("arm", re.compile(r"[-.](arm64|aarch64|armmp|armv[5-8]\w*|rpi-v[678]|rpi-2712)$")),
    ("riscv", re.compile(r"[-.]riscv64$")),
)
# The names of QEMU's handlers, by what `platform.machine` calls the architecture.
_HANDLERS = {
    "x86_64": "qemu-x86_64", "i686": "qemu-i386", "aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "armv6l": "qemu-arm",
    "riscv64": "qemu-riscv64",
}  # fmt: skip
_FAMILIES = {"x86_64": "x86", "i686": "x86", "aarch64": "arm", "armv7l": "arm", "armv6l": "arm", "riscv64": "riscv"}


@dataclass(frozen=True)
class FoundEvidence:
    """How far numbers can be believed.

    Attributes:
        level: ``measured`` on real hardware, or ``executed`` by something that plays it.
        reason: How that is known.
    """

    level: Evidence
    reason: str


def find_evidence(machine: MachineFacts, program: ProgramFacts, *, root: Path = _ROOT) -> FoundEvidence:
    """Return whether what ran a program is the hardware that it seems to be.

    Args:
        machine: The machine.
        program: What ran it.
        root: Where ``proc`` is; a fake tree in tests.
    """
    here = machine.architecture
    if machine.emulated_on is not None:
        return FoundEvidence("executed", f"the kernel is of {machine.emulated_on}, the program of {here}")
    kernel = next((family for family, ending in _RELEASE_FAMILIES if ending.search(machine.kernel or "")), None)
    if kernel is not None and here in _FAMILIES and kernel != _FAMILIES[here]:
        return FoundEvidence("executed", f"the kernel {machine.kernel} is not of {here}, the program's architecture")
    handler = _handler(root, here)
    if handler is not None:
        return FoundEvidence("executed", f"this system gives programs of {here} to {handler}")
    if machine.cpu_model is not None and _EMULATED_CPU.search(machine.cpu_model):
        return FoundEvidence("executed", f"the processor is emulated: it calls itself {machine.cpu_model}")
    driver = _SOFTWARE_DRIVERS.search(" ".join((program.device, program.delegate, *program.notes)))
    if driver is not None:
        return FoundEvidence("executed", f"{driver[0]} draws on the processor what a GPU should")
    return FoundEvidence("measured", "no sign of an emulated processor or of a software driver")


def _handler(root: Path, architecture: str) -> str | None:
    name = _HANDLERS.get(architecture)
    if name is None:
        return None
    try:
        words = (root / "proc/sys/fs/binfmt_misc" / name).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return None
    return name if words[:1] == ["enabled"] else None
