"""What stands beside the numbers of a run: the bundle, the device that they are wanted for, the versions."""

from __future__ import annotations

import hashlib

from edgelm_device_profiles import Detection, DeviceProfile
from edgelm_runtimes.machine import MachineFacts, package_versions

from edgelm.bench.context import BundleFacts, ProfileFacts
from edgelm.bundle import Artifact, Bundle
from edgelm.bundle.checks import MANIFEST

__all__ = ["bundle_facts", "installed_versions", "machine_name", "profile_facts"]

# What a measurement depends on, by the name of the distribution.
_PACKAGES = ("edgelm", "ai-edge-litert", "tflite-runtime", "onnxruntime", "numpy", "tokenizers")


def bundle_facts(bundle: Bundle, artifact: Artifact) -> BundleFacts:
    """Return what a run records of the bundle and of the file in it that ran."""
    manifest = bundle.manifest
    return BundleFacts(
        name=manifest.name,
        manifest_sha256=hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest(),
        task=manifest.task,
        recipe=manifest.recipe,
        format=artifact.format,
        size_bytes=artifact.size_bytes,
        bundle_size_bytes=sum(record.size_bytes for record in manifest.files.values()),
        parameters=manifest.model.parameters,
        path=manifest.model.path,
        family=manifest.model.family,
        architecture=manifest.model.architecture,
        parity=artifact.parity,
        accuracy=artifact.accuracy,
    )


def profile_facts(profile: DeviceProfile, detection: Detection, machine: MachineFacts) -> ProfileFacts:
    """Return the device that the numbers are wanted for, and whether this machine is it.

    Under emulation nothing is a match: the processor that did the work is another.
    """
    match = detection.profile == profile.name and machine.emulated_on is None
    here = f"{machine_name(machine)} ({machine.architecture})"
    where = f"on {profile.title}" if match else f"on {here}, not on {profile.title}"
    verb = "Executed" if machine.emulated_on else "Measured"
    return ProfileFacts(
        name=profile.name,
        title=profile.title,
        match=match,
        detected=detection.profile,
        statement=f"{verb} {where}.",
    )


def machine_name(machine: MachineFacts) -> str:
    """Return what to call a machine: its board, else its processor."""
    return machine.device_model or machine.cpu_model or "a machine that does not name itself"


def installed_versions() -> dict[str, str]:
    """Return the versions of edgelm and of what it stands on, as far as it is installed."""
    return {name: version for name, version in package_versions(_PACKAGES).items() if version is not None}
