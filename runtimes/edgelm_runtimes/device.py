"""Where a model runs: ``cpu``, ``gpu``, ``edgetpu`` or a delegate library of one's own, with options, as one text.

    cpu                                 the runtime's own kernels
    gpu                                 LiteRT's GPU accelerator
    edgetpu, edgetpu:usb:1, edgetpu:0   an Edge TPU through libedgetpu; the first, a USB stick by number, any by number
    delegate:/path/lib.so               any TFLite delegate library

``?name=value&name=value`` behind it are options of the delegate, such as ``edgetpu:usb?Performance=High``.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from edgelm.errors import InputError

__all__ = ["Device", "DeviceState", "Kind", "device_states", "parse_device"]

Kind = Literal["cpu", "gpu", "edgetpu", "delegate"]

# Names that libedgetpu takes as its option "device" (edgetpu.h): "usb", "usb:1", "pci", "pci:0", ":0".
_EDGETPU = re.compile(r"(?:usb|pci)?(?::?\d+)?")
_EDGETPU_LIBRARY = Path("libedgetpu.so.1")  # found as the system finds libraries


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        text: As it was asked for.
        kind: What it is.
        library: Of a delegate; None for ``cpu`` and ``gpu``.
        options: What the delegate is told.
    """

    text: str
    kind: Kind
    library: Path | None = None
    options: dict[str, str] = field(default_factory=dict)


def parse_device(text: str) -> Device:
    """Read where a model is to run.

    Raises:
        InputError: It is no such text; the message says what is known.
    """
    place, _, query = text.partition("?")
    kind, _, rest = place.partition(":")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise InputError(f"The options of the device '{text}' are not name=value&name=value ({error}).") from error
    if kind == "edgetpu" and _EDGETPU.fullmatch(rest):
        name = f":{rest}" if rest.isdecimal() else rest
        return Device(text, "edgetpu", _EDGETPU_LIBRARY, {**({"device": name} if name else {}), **options})
    if kind == "delegate" and rest:
        return Device(text, "delegate", Path(rest), options)
    if text in ("cpu", "gpu"):
        return Device(text, "cpu" if text == "cpu" else "gpu")
    raise InputError(
        f"There is no device '{text}'. Known: cpu, gpu, edgetpu, edgetpu:usb:0, and delegate:LIBRARY, the last two with "
        "?name=value options."
    )


@dataclass(frozen=True)
class DeviceState:
    """Whether what a device needs is installed here; whether a device is there shows when a model is opened.

    Attributes:
        device: ``gpu`` or ``edgetpu``.
        ready: Whether nothing is missing.
        why: What is there, or what is missing and how to get it.
    """

    device: str
    ready: bool
    why: str


def device_states() -> tuple[DeviceState, ...]:
    """Return the state of every device but the CPU. Nothing is loaded."""
    package = importlib.util.find_spec("ai_edge_litert")
    vulkan = ctypes.util.find_library("vulkan")
    if package is None:
        gpu = DeviceState("gpu", False, "its accelerator comes with ai-edge-litert: pip install 'edgelm[litert]'")
    elif vulkan is None:
        gpu = DeviceState("gpu", False, "there is no Vulkan loader: install libvulkan1 and the GPU's driver")
    else:
        gpu = DeviceState("gpu", True, f"LiteRT's accelerator and {vulkan}; the driver is tried with each bundle")
    library = ctypes.util.find_library("edgetpu")
    if library is None:
        why = "there is no libedgetpu: install libedgetpu1-std (of Coral, or feranick's builds for newer systems)"
        return gpu, DeviceState("edgetpu", False, why)
    return gpu, DeviceState("edgetpu", True, f"{library}; a stick is looked for with each bundle")
