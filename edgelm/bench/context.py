"""What and where was measured: the bundle, the device that the numbers are wanted for, the state of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm_runtimes.machine import FrequencyPolicy, MachineFacts, ThermalZone, Throttling

from edgelm.bundle import Accuracy, Parity

__all__ = ["BundleFacts", "Conditions", "ProfileFacts"]


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What was measured: from the bundle's manifest.

    Attributes:
        name: The bundle's name.
        manifest_sha256: SHA-256 (hex) of ``manifest.json``, which holds the SHA-256 of every other file: two runs with
            the same one measured the same bytes.
        task: ``classify``, ``embed`` or ``raw``.
        recipe: Such as ``dynamic_wi8_afp32``.
        format: ``tflite`` or ``onnx``.
        size_bytes: Of the model file with its external weights.
        bundle_size_bytes: Of every file that a device needs: models of all formats, tokenizer, golden vectors.
        parameters: Number of weights.
        path: ``recognised`` or ``traced``.
        family: The family reader, or None where traced.
        architecture: Layers, width, heads and so on.
        parity: Against Keras, as the converter measured it.
        accuracy: On labelled data, as the converter measured it; None where no such data was given.
    """

    name: str
    manifest_sha256: str
    task: str
    recipe: str
    format: str
    size_bytes: int
    bundle_size_bytes: int
    parameters: int
    path: str
    family: str | None
    architecture: dict[str, int | float | str | bool | None]
    parity: Parity
    accuracy: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class ProfileFacts:
    """The device that the numbers are wanted for, and whether they were measured on it.

    Attributes:
        name: The profile, such as ``raspberry-pi-5``.
        title: Its name for people.
        match: Whether this machine is that device. If False, the run says nothing about the device's speed.
        detected: The profile that fits this machine; None if none does.
        statement: The same in a sentence, such as "Measured on AMD EPYC (x86_64), not on Raspberry Pi 5."
    """

    name: str
    title: str
    match: bool
    detected: str | None
    statement: str


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The state of the machine at one moment.

    Attributes:
        load_average_1min: Runnable processes, averaged over one minute; the benchmark itself is among them.
        thermal_zones: Temperatures.
        frequency_policies: Clocks.
        throttling: Limits of the clock, where the board can tell.
    """

    load_average_1min: float | None
    thermal_zones: tuple[ThermalZone, ...]
    frequency_policies: tuple[FrequencyPolicy, ...]
    throttling: Throttling | None

    @classmethod
    def of(cls, machine: MachineFacts) -> Conditions:
        """Return the state that is part of the machine's facts."""
        return cls(
            load_average_1min=machine.load_average_1min,
            thermal_zones=machine.thermal_zones,
            frequency_policies=machine.frequency_policies,
            throttling=machine.throttling,
        )
