"""Facts about devices: what is known of each, with its source, and which one this is.

>>> profile = load("raspberry-pi-5")
>>> profile.cpu.cores.value, profile.cpu.cores.unit, profile.cpu.cores.kind
(4, 'count', 'vendor')

Importing this package reads no file; `load` reads one, `detect` looks at the machine.
"""

from edgelm_device_profiles.cpuinfo import ISA_FEATURES, CpuInfo, isa_features, parse_cpuinfo
from edgelm_device_profiles.detect import (
    Detection,
    DeviceFacts,
    detect,
    match,
    parse_android_properties,
    read_device_facts,
)
from edgelm_device_profiles.fact import Fact
from edgelm_device_profiles.loader import load, names
from edgelm_device_profiles.profile import (
    Accelerator,
    Cpu,
    DeviceProfile,
    Energy,
    MatchRules,
    Memory,
    Power,
    Software,
    parse_profile,
)

__all__ = [
    "ISA_FEATURES",
    "Accelerator",
    "Cpu",
    "CpuInfo",
    "Detection",
    "DeviceFacts",
    "DeviceProfile",
    "Energy",
    "Fact",
    "MatchRules",
    "Memory",
    "Power",
    "Software",
    "detect",
    "isa_features",
    "load",
    "match",
    "names",
    "parse_android_properties",
    "parse_cpuinfo",
    "parse_profile",
    "read_device_facts",
]
