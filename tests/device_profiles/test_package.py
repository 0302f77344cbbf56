import subprocess
import sys

import edgelm_device_profiles

PUBLIC = [
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

# Importing a module reads its .py or .pyc, which are the only files allowed.
CHECK = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
import edgelm_device_profiles
print([path for path in opened if path.endswith(".toml") or path.startswith(("/proc", "/sys", "/dev"))])
"""


def test_the_public_names_are_pinned():
    assert edgelm_device_profiles.__all__ == PUBLIC
    assert all(hasattr(edgelm_device_profiles, name) for name in PUBLIC)


def test_importing_reads_no_profile_and_no_device():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{CHECK}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
