"""What machine this is, and what state it is in: recorded beside every measurement.

It reads files only and changes nothing, apart from `reset_peak_memory`. The host's name, serial numbers and addresses
are not read, so that a report can be shared.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelm_device_profiles.cpuinfo import CpuInfo, parse_cpuinfo

if sys.platform != "win32":
    import resource

__all__ = [
    "FrequencyPolicy",
    "MachineFacts",
    "ThermalZone",
    "Throttling",
    "machine_facts",
    "package_versions",
    "parse_throttled",
    "peak_memory_bytes",
    "reset_peak_memory",
]

Runner = Callable[[Sequence[str]], str]

_ROOT = Path("/")

# Bits of `vcgencmd get_throttled`; the same 16 bits higher mean "has happened since the board started".
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_THROTTLE_BITS = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}
_OCCURRED_SHIFT = 16

_ARCHITECTURE_FAMILIES = {
    "x86": re.compile(r"x86_64|amd64|i[3-6]86", re.IGNORECASE),
    "arm": re.compile(r"aarch64|arm.*", re.IGNORECASE),
    "riscv": re.compile(r"riscv.*", re.IGNORECASE),
}
_CONTAINER_WORDS = ("kubepods", "docker", "podman", "libpod", "containerd", "lxc")


@dataclass(frozen=True, kw_only=True)
class FrequencyPolicy:
    """The clock of a group of cores that share one.

    Attributes:
        cpus: The cores.
        governor: Who sets the clock, such as ``ondemand`` or ``performance``.
        current_hz: The clock now.
        max_hz: The highest that the governor may set.
        hardware_max_hz: The highest that the hardware has.
    """

    cpus: tuple[int, ...]
    governor: str | None
    current_hz: int | None
    max_hz: int | None
    hardware_max_hz: int | None


@dataclass(frozen=True, kw_only=True)
class ThermalZone:
    """A temperature sensor.

    Attributes:
        name: Its type as the kernel names it, such as ``cpu-thermal``.
        temperature_c: Degrees Celsius.
    """

    name: str
    temperature_c: float


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """What a Raspberry Pi says of its clock's limits.

    The names are ``under_voltage``, ``frequency_capped``, ``throttled`` and ``soft_temperature_limit``.

    Attributes:
        now: The limits at work now.
        occurred: Those that have been at work since the board started.
    """

    now: tuple[str, ...]
    occurred: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """The machine and its state. None is not known, an empty tuple is nothing there.

    Attributes:
        device_model: The board's name in the device tree.
        cpu_model: Such as ``4x Arm Cortex-A76``.
        architecture: What this process runs as, such as ``aarch64``.
        logical_cores: Of the whole machine.
        usable_cores: The ones that this process may run on; None where the system cannot tell.
        isa: The features in `edgelm_device_profiles.ISA_FEATURES` that every core has.
        memory_total_bytes: Main memory that the kernel manages.
        kernel: The kernel's release.
        os_name: The operating system's name and version.
        python_version: Of this process.
        frequency_policies: Clocks and who sets them.
        load_average_1min: Runnable processes, averaged over one minute.
        thermal_zones: Temperatures.
        throttling: Limits of the clock, where the board can tell.
        container: What kind of container this is; None without a sign of one.
        virtual_machine: What it runs on, where it shows that it is a virtual machine; None without a sign of one.
        emulated_on: The kernel's architecture where it is foreign to this process: its timings mean nothing.
        notes: What could not be read, a sentence each.
    """

    device_model: str | None
    cpu_model: str | None
    architecture: str
    logical_cores: int | None
    usable_cores: tuple[int, ...] | None
    isa: tuple[str, ...]
    memory_total_bytes: int | None
    kernel: str | None
    os_name: str | None
    python_version: str
    frequency_policies: tuple[FrequencyPolicy, ...]
    load_average_1min: float | None
    thermal_zones: tuple[ThermalZone, ...]
    throttling: Throttling | None
    container: str | None
    virtual_machine: str | None
    emulated_on: str | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-able values."""
        table: dict[str, Any] = _plain(asdict(self))
        return table


def machine_facts(root: Path = _ROOT, *, run: Runner | None = None) -> MachineFacts:
    """Return what machine this is and what state it is in.

    Architecture, usable cores and Python are those of this process; all else is read below `root`.

    Args:
        root: Where ``proc``, ``sys`` and ``etc`` are; a fake tree in tests.
        run: Runs ``vcgencmd`` and returns what it prints; it may raise OSError or subprocess.SubprocessError. None runs
            it where `root` is this machine's and the program is there.
    """
    if run is None and root == _ROOT and shutil.which("vcgencmd"):
        run = _run
    notes: list[str] = []
    cpu = parse_cpuinfo(_read(root / "proc/cpuinfo") or "")
    architecture = platform.machine()
    return MachineFacts(
        device_model=_read(root / "proc/device-tree/model") or cpu.board_model,
        cpu_model=cpu.model_name,
        architecture=architecture,
        logical_cores=cpu.processors or os.cpu_count(),
        usable_cores=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None,
        isa=cpu.isa,
        memory_total_bytes=_parse_kib(_read(root / "proc/meminfo") or "", "MemTotal"),
        kernel=_read(root / "proc/sys/kernel/osrelease"),
        os_name=_parse_os_release(_read(root / "etc/os-release") or ""),
        python_version=platform.python_version(),
        frequency_policies=_read_policies(root / "sys/devices/system/cpu/cpufreq"),
        load_average_1min=_parse_load(_read(root / "proc/loadavg") or ""),
        thermal_zones=_read_thermal_zones(root / "sys/class/thermal"),
        throttling=None if run is None else _read_throttling(run, notes),
        container=_find_container(root),
        virtual_machine=_find_virtual_machine(root, cpu),
        emulated_on=_find_emulation(architecture, _read(root / "proc/sys/kernel/arch")),
        notes=tuple(notes),
    )


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is not installed. Nothing is imported."""
    return {name: _package_version(name) for name in names}


def peak_memory_bytes(root: Path = _ROOT) -> int | None:
    """Return the most memory that this process has had resident; None where the system cannot tell.

    On Linux that is since the start or the last `reset_peak_memory`, elsewhere always since the start.
    """
    high_water = _parse_kib(_read(root / "proc/self/status") or "", "VmHWM")
    if high_water is not None or sys.platform == "win32":
        return high_water
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(root: Path = _ROOT) -> bool:
    """Let `peak_memory_bytes` start again from the memory resident now; return whether the system permits it.

    Source: ``/proc/pid/clear_refs`` in Linux's Documentation/filesystems/proc.rst, value 5.
    """
    try:
        # No O_CREAT: outside Linux the file must not come into being.
        descriptor = os.open(root / "proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, b"5")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def parse_throttled(text: str) -> Throttling:
    """Return the limits that ``vcgencmd get_throttled`` prints, such as ``throttled=0x50005``.

    Raises:
        ValueError: The text is of another form.
    """
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", text.strip())
    if not found:
        raise ValueError(f"expected 'throttled=0x…', got '{text.strip()}'")
    bits = int(found[1], 16)
    return Throttling(now=_limits(bits), occurred=_limits(bits >> _OCCURRED_SHIFT))


def _limits(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLE_BITS.items() if bits >> bit & 1)


def _read_throttling(run: Runner, notes: list[str]) -> Throttling | None:
    try:
        return parse_throttled(run(["vcgencmd", "get_throttled"]))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        notes.append(f"throttling is not known, because vcgencmd get_throttled failed: {error}")
        return None


def _read_policies(folder: Path) -> tuple[FrequencyPolicy, ...]:
    # Nine cores have policy0 to policy8, sixteen policy0 to policy15: sort by number.
    paths = sorted(folder.glob("policy[0-9]*"), key=lambda path: (len(path.name), path.name))
    return tuple(
        FrequencyPolicy(
            cpus=_parse_integers(_read(path / "related_cpus") or ""),
            governor=_read(path / "scaling_governor"),
            current_hz=_read_khz(path / "scaling_cur_freq"),
            max_hz=_read_khz(path / "scaling_max_freq"),
            hardware_max_hz=_read_khz(path / "cpuinfo_max_freq"),
        )
        for path in paths
    )


def _read_khz(path: Path) -> int | None:
    numbers = _parse_integers(_read(path) or "")
    return numbers[0] * 1000 if numbers else None


def _read_thermal_zones(folder: Path) -> tuple[ThermalZone, ...]:
    zones = []
    for path in sorted(folder.glob("thermal_zone[0-9]*"), key=lambda path: (len(path.name), path.name)):
        # A sensor that is asleep gives an error or nothing; then there is no temperature to report.
        millidegrees = _parse_integers(_read(path / "temp") or "")
        if millidegrees:
            zones.append(ThermalZone(name=_read(path / "type") or path.name, temperature_c=millidegrees[0] / 1000))
    return tuple(zones)


def _find_container(root: Path) -> str | None:
    named = _read(root / "run/systemd/container")
    if named:
        return named
    for marker, name in (("run/.containerenv", "podman"), (".dockerenv", "docker")):
        if (root / marker).exists():
            return name
    groups = _read(root / "proc/1/cgroup") or ""
    return next((word for word in _CONTAINER_WORDS if word in groups), None)


def _find_virtual_machine(root: Path, cpu: CpuInfo) -> str | None:
    if "microsoft" in (_read(root / "proc/sys/kernel/osrelease") or "").lower():
        return "WSL"
    if "hypervisor" not in cpu.flags:
        return None
    dmi = root / "sys/class/dmi/id"
    words = [word for name in ("sys_vendor", "product_name") if (word := _read(dmi / name))]
    return " ".join(words) or "unknown hypervisor"


def _find_emulation(process: str, kernel: str | None) -> str | None:
    """Return the kernel's architecture where it is of another family: a 32-bit process on its own kernel is native."""
    families = [_family(process), _family(kernel or "")]
    return kernel if all(families) and families[0] != families[1] else None


def _family(architecture: str) -> str | None:
    return next((name for name, known in _ARCHITECTURE_FAMILIES.items() if known.fullmatch(architecture)), None)


def _parse_kib(text: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _parse_integers(text: str) -> tuple[int, ...]:
    words = text.split()
    return tuple(int(word) for word in words) if all(re.fullmatch(r"-?[0-9]+", word) for word in words) else ()


def _parse_load(text: str) -> float | None:
    found = re.match(r"\d+\.\d+(?=\s)", text)
    return float(found[0]) if found else None


def _parse_os_release(text: str) -> str | None:
    found = re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE)
    if not found:
        return None
    try:
        return " ".join(shlex.split(found[1])) or None
    except ValueError:  # an open quote: the file is not as os-release(5) asks, its words are still of use
        return found[1].strip("\"' ") or None


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n") or None
    except OSError:
        return None


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=1, check=True).stdout


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
