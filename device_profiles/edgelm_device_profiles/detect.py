"""Tells which device this is, and on what evidence."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgelm_device_profiles.cpuinfo import parse_cpuinfo
from edgelm_device_profiles.fact import Fact
from edgelm_device_profiles.loader import load, names
from edgelm_device_profiles.profile import DeviceProfile

__all__ = ["Detection", "DeviceFacts", "detect", "match", "parse_android_properties", "read_device_facts"]

# Android splits its properties over partitions; a normal user may read only some of the files, hence getprop first.
_BUILD_PROPS = (
    "system/build.prop",
    "vendor/build.prop",
    "product/etc/build.prop",
    "product/build.prop",
    "odm/etc/build.prop",
)
_GETPROP = Path("/system/bin/getprop")
_PRODUCT = re.compile(r"ro\.product\.(?:\w+\.)?(?P<what>device|model)")
_PROPERTY = re.compile(r"\[(?P<key>[^]]+)\]: \[(?P<value>.*)\]|(?P<key2>[^#=\s][^=]*)=(?P<value2>.*)")


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What a device tells of itself.

    Attributes:
        architecture: As ``uname -m`` prints it.
        device_tree_model: The board's name.
        android_devices: Every value of Android's ``ro.product…device``.
        android_models: Every value of Android's ``ro.product…model``.
        usb_ids: ``vendor:product`` of every USB device, in lower-case hexadecimal.
        device_nodes: Nodes of Edge TPUs on PCIe, such as ``/dev/apex_0``.
    """

    architecture: str
    device_tree_model: str | None = None
    android_devices: tuple[str, ...] = ()
    android_models: tuple[str, ...] = ()
    usb_ids: tuple[str, ...] = ()
    device_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Which profiles fit a device.

    Attributes:
        profile: The name of the device's profile; None if not even a generic one fits.
        generic: Whether `profile` stands for a class of machines only, because nothing recognised the device itself.
        attached: The names of the profiles of accelerators that are plugged into it.
        evidence: Why, a sentence each.
        warnings: What does not fit together, a sentence each.
    """

    profile: str | None
    generic: bool
    attached: tuple[str, ...]
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the detection as JSON-able values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def detect(
    root: Path = Path("/"), *, architecture: str | None = None, getprop: Callable[[], str] | None = None
) -> Detection:
    """Return which shipped profiles fit the device whose file system is at `root`.

    Args:
        root: Where ``proc``, ``sys`` and ``dev`` are; a fake tree in tests.
        architecture: As ``uname -m`` prints it; None asks this machine.
        getprop: Returns the output of Android's ``getprop``; None runs it where `root` is this machine's and it exists.
    """
    return match(read_device_facts(root, architecture=architecture, getprop=getprop))


def match(facts: DeviceFacts, profiles: Iterable[DeviceProfile] | None = None) -> Detection:
    """Return which profiles fit the facts.

    Args:
        facts: What the device tells of itself.
        profiles: Those to choose from, the preferred first; None takes the shipped ones.
    """
    candidates = tuple(load(name) for name in names()) if profiles is None else tuple(profiles)
    evidence: list[str] = []
    found: dict[str, list[DeviceProfile]] = {"device": [], "attached": [], "generic": []}
    for profile in candidates:
        reasons = _reasons(profile, facts)
        if reasons:
            group = {"accelerator": "attached", "generic": "generic"}.get(profile.category, "device")
            found[group].append(profile)
            if group != "generic":
                evidence += [f"{profile.name}: {reason}" for reason in reasons]
    generic = not found["device"]
    if generic:
        evidence += [
            f"{profile.name}: the architecture is '{facts.architecture}', and nothing names the device itself"
            for profile in found["generic"][:1]
        ]
        if not found["generic"]:
            model = f", device-tree model '{facts.device_tree_model}'" if facts.device_tree_model else ""
            evidence.append(f"no profile fits: architecture '{facts.architecture}'{model}")
    chosen = next(iter(found["device"] or found["generic"]), None)
    return Detection(
        profile=chosen.name if chosen else None,
        generic=generic and chosen is not None,
        attached=tuple(profile.name for profile in found["attached"]),
        evidence=tuple(evidence),
        warnings=_warnings(facts, found["device"]),
    )


def read_device_facts(
    root: Path = Path("/"), *, architecture: str | None = None, getprop: Callable[[], str] | None = None
) -> DeviceFacts:
    """Return what the device whose file system is at `root` tells of itself.

    The arguments are those of `detect`. What is absent or may not be read is empty.
    """
    model = _read(root / "proc/device-tree/model")
    if not model:
        # A container hides the device tree, yet the kernel of the Raspberry Pi repeats its model here.
        model = parse_cpuinfo(_read(root / "proc/cpuinfo")).board_model or ""
    if getprop is None and root == Path("/") and _GETPROP.exists():
        getprop = _run_getprop
    printed = getprop() if getprop else ""
    texts = [printed] if printed else [_read(root / name) for name in _BUILD_PROPS]
    products = [(found["what"], value) for key, value in _properties(texts) if (found := _PRODUCT.fullmatch(key))]
    return DeviceFacts(
        architecture=platform.machine() if architecture is None else architecture,
        device_tree_model=model or None,
        android_devices=_unique(value for what, value in products if what == "device"),
        android_models=_unique(value for what, value in products if what == "model"),
        usb_ids=_read_usb_ids(root / "sys/bus/usb/devices"),
        device_nodes=tuple(sorted(f"/dev/{node.name}" for node in (root / "dev").glob("apex_[0-9]*"))),
    )


def parse_android_properties(text: str) -> dict[str, str]:
    """Return Android's properties, from the output of ``getprop`` or from a ``build.prop``."""
    properties = {}
    for line in text.splitlines():
        if found := _PROPERTY.fullmatch(line.strip()):
            key, value = (found["key"], found["value"]) if found["key"] else (found["key2"], found["value2"])
            properties[key.strip()] = value.strip()
    return properties


def _properties(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [item for text in texts for item in parse_android_properties(text).items()]


def _reasons(profile: DeviceProfile, facts: DeviceFacts) -> list[str]:
    rules = profile.match
    checks = [
        ("device-tree model", rules.device_tree_models, [facts.device_tree_model] if facts.device_tree_model else []),
        ("Android device", rules.android_devices, facts.android_devices),
        ("Android model", rules.android_models, facts.android_models),
        ("USB id", rules.usb_ids, facts.usb_ids),
        ("architecture", rules.architectures, [facts.architecture]),
    ]
    reasons = [f"{what} '{value}'" for what, rule, values in checks for value in values if _fits(value, rule)]
    if reasons and rules.device_nodes:
        reasons += [f"device node '{node}'" for node in facts.device_nodes if _fits(node, rules.device_nodes)]
    return reasons


def _fits(value: str, rule: Fact[tuple[str, ...]] | None) -> bool:
    return rule is not None and any(fnmatchcase(value, pattern) for pattern in rule.value)


def _warnings(facts: DeviceFacts, devices: list[DeviceProfile]) -> tuple[str, ...]:
    warnings = []
    if len(devices) > 1:
        warnings.append(f"Several profiles fit: {', '.join(profile.name for profile in devices)}. The first is taken.")
    expected = [(profile, profile.match.device_nodes) for profile in devices[:1] if profile.match.device_nodes]
    for profile, rule in expected:
        if not any(_fits(node, rule) for node in facts.device_nodes):
            nodes = ", ".join(rule.value) if rule else ""
            warnings.append(f"{profile.name} should have {nodes}, which is absent: its driver is not loaded.")
    unexplained = [node for node in facts.device_nodes if not any(_fits(node, rule) for _, rule in expected)]
    if unexplained:
        warnings.append(
            f"There is an Edge TPU on PCIe ({', '.join(unexplained)}) that no profile found here describes."
        )
    return tuple(warnings)


def _read_usb_ids(folder: Path) -> tuple[str, ...]:
    ids = (
        f"{vendor}:{product}".lower()
        for device in sorted(folder.glob("*"))
        if (vendor := _read(device / "idVendor")) and (product := _read(device / "idProduct"))
    )
    return _unique(ids)


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""


def _run_getprop() -> str:
    try:
        return subprocess.run([os.fspath(_GETPROP)], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
