"""What Linux says of a processor in /proc/cpuinfo, on Arm and x86."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ISA_FEATURES", "CpuInfo", "isa_features", "parse_cpuinfo"]

# Instructions that matter to the runtimes' kernels: the name that edgelm uses, and Linux's names for it, as listed in
# Documentation/arch/arm64/elf_hwcaps.rst and arch/x86/include/asm/cpufeatures.h. `fp16` is Arm's half arithmetic.
_KERNEL_FLAGS: dict[str, tuple[str, ...]] = {
    "neon": ("neon", "asimd"),
    "fp16": ("asimdhp",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
    "sve2": ("sve2",),
    "sme": ("sme",),
    "avx": ("avx",),
    "f16c": ("f16c",),
    "fma": ("fma",),
    "avx2": ("avx2",),
    "avx_vnni": ("avx_vnni",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
}

ISA_FEATURES: tuple[str, ...] = tuple(_KERNEL_FLAGS)
"""Every instruction-set feature that edgelm has a name for."""

# The part numbers of implementer 0x41 (Arm), from the MIDR_EL1 pages of Arm's core manuals.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
_ARM = 0x41


@dataclass(frozen=True)
class CpuInfo:
    """The parts of /proc/cpuinfo that edgelm uses. The serial number of a board is not among them.

    Attributes:
        model_name: Such as ``4x Arm Cortex-A76`` or ``Intel(R) N100``; None where the file does not say.
        board_model: The board's name, which the kernel of the Raspberry Pi adds.
        processors: Logical processors listed.
        flags: The kernel's names of the features that every listed processor has.
    """

    model_name: str | None
    board_model: str | None
    processors: int
    flags: frozenset[str]

    @property
    def isa(self) -> tuple[str, ...]:
        """The features of `ISA_FEATURES` that every processor has."""
        return isa_features(self.flags)


def isa_features(flags: Iterable[str]) -> tuple[str, ...]:
    """Return the names in `ISA_FEATURES`, in its order, that a kernel's flags stand for."""
    present = set(flags)
    return tuple(name for name, kernel_names in _KERNEL_FLAGS.items() if present.intersection(kernel_names))


def parse_cpuinfo(text: str) -> CpuInfo:
    """Return what a /proc/cpuinfo says. Lines that it does not know are passed over."""
    processors = 0
    parts: list[tuple[str, str]] = []
    flag_sets: list[set[str]] = []
    implementer = ""
    model_name = board_model = None
    for line in text.splitlines():
        key, _, value = (item.strip() for item in line.partition(":"))
        if key == "processor":
            processors += 1
        elif key in ("flags", "Features"):
            flag_sets.append(set(value.split()))
        elif key == "CPU implementer":
            implementer = value
        elif key == "CPU part":
            parts.append((implementer, value))
        elif key == "model name":
            model_name = value or model_name
        elif key == "Model":
            board_model = value or board_model
    # A 32-bit Arm kernel says "ARMv7 Processor rev 4 (v7l)" there, which the part number is better than.
    named = _describe_parts(parts) or model_name
    common = frozenset(set.intersection(*flag_sets)) if flag_sets else frozenset()
    return CpuInfo(model_name=named, board_model=board_model, processors=processors, flags=common)


def _describe_parts(parts: list[tuple[str, str]]) -> str | None:
    counts = Counter(_name_part(implementer, part) for implementer, part in parts)
    return " + ".join(f"{count}x {name}" for name, count in counts.items()) or None


def _name_part(implementer: str, part: str) -> str:
    try:
        known = _ARM_PARTS.get(int(part, 16)) if int(implementer, 16) == _ARM else None
    except ValueError:
        known = None
    return f"Arm {known}" if known else f"implementer {implementer or '?'} part {part or '?'}"
