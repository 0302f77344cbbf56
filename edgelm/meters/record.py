"""What a run keeps of its energy: plain values, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgelm_device_profiles import DeviceProfile, Fact

from edgelm.errors import MeterError
from edgelm.meters.account import NetEnergy, TokenEnergy
from edgelm.meters.energy import Energy
from edgelm.meters.meter import MeterFacts, Scope

__all__ = ["EnergyRecord", "EnergyWindow", "measured", "modelled", "not_measured"]


@dataclass(frozen=True, kw_only=True)
class EnergyWindow:
    """One window in which the load ran.

    Attributes:
        duration_s: Its length.
        gross_j: All that was drawn.
        net_j: Less idle; None where idle was not measured.
        idle_w: The power at rest, likewise.
        uncertainty_j: A bound on the error of `net_j`, or of `gross_j` where there is no net.
        standard_j: One standard deviation of the same.
        readings: Of the sensor.
        reliable: Whether it was long enough for the sensor, and whole.
        reason: Why it was not.
    """

    duration_s: float
    gross_j: float
    net_j: float | None
    idle_w: float | None
    uncertainty_j: float
    standard_j: float
    readings: int
    reliable: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class EnergyRecord:
    """The energy of a run. None is "not measured", never 0.

    Attributes:
        method: ``measured``; ``modelled`` from the profile's power, which stands in a column of its own and is never compared
            with what was measured; or ``not measured``.
        scope: What the sensor sees; None without a sensor.
        sensor: Its name.
        rate_hz: How often it has a new value.
        inferences: In all windows together.
        gross_j: Of all windows.
        net_j: Of all windows, less idle.
        idle_w: The power at rest, the mean over the windows by their length.
        per_inference_j: `net_j` for one inference, or `gross_j` where idle was not measured (`net_j` is None then).
        uncertainty_j: A bound on the error of `per_inference_j`.
        standard_j: One standard deviation of it.
        prefill_j_per_token: Of a language model, net.
        decode_j_per_token: Likewise.
        windows: One each.
        notes: What must be known to use the figures: what the sensor does not see, why they are not to be relied on, what
            a model assumes, why nothing was measured.
    """

    method: Literal["measured", "modelled", "not measured"]
    scope: Scope | None
    sensor: str | None
    rate_hz: float | None
    inferences: int | None
    gross_j: float | None
    net_j: float | None
    idle_w: float | None
    per_inference_j: float | None
    uncertainty_j: float | None
    standard_j: float | None
    prefill_j_per_token: float | None
    decode_j_per_token: float | None
    windows: tuple[EnergyWindow, ...]
    notes: tuple[str, ...]

    @property
    def reliable(self) -> bool:
        """Whether there are windows, and each is long enough and whole."""
        return bool(self.windows) and all(window.reliable for window in self.windows)


def measured(
    facts: MeterFacts,
    windows: Sequence[NetEnergy] | Sequence[Energy],
    inferences: int,
    *,
    tokens: TokenEnergy | None = None,
    events: Sequence[str] = (),
) -> EnergyRecord:
    """Return the record of what a meter saw.

    Args:
        facts: Of the meter.
        windows: While the load ran: net of idle, or gross where idle was not measured. At least one.
        inferences: In all of them together.
        tokens: Of a language model.
        events: What went wrong while reading: `Trace.events`.

    Raises:
        MeterError: There is no window or no inference.
    """
    if not windows or inferences < 1:
        raise MeterError(f"An energy of {len(windows)} windows and {inferences} inferences makes no sense. Run some.")
    kept = tuple(_window(window) for window in windows)
    duration_s = sum(window.duration_s for window in kept)
    net_j = _sum([window.net_j for window in kept])
    idle_j = _sum([window.idle_w * window.duration_s if window.idle_w is not None else None for window in kept])
    gross_j = sum(window.gross_j for window in kept)
    notes = [f"not seen: {what}" for what in facts.unseen]
    notes += [f"not to be relied on: {window.reason}" for window in kept if window.reason is not None]
    notes += [] if net_j is not None else ["idle was not measured, so what an inference costs includes it"]
    return EnergyRecord(
        method=facts.method,
        scope=facts.scope,
        sensor=facts.name,
        rate_hz=facts.rate_hz,
        inferences=inferences,
        gross_j=gross_j,
        net_j=net_j,
        idle_w=None if idle_j is None else idle_j / duration_s,
        per_inference_j=(gross_j if net_j is None else net_j) / inferences,
        uncertainty_j=sum(window.uncertainty_j for window in kept) / inferences,
        standard_j=math.hypot(*(window.standard_j for window in kept)) / inferences,
        prefill_j_per_token=None if tokens is None else tokens.prefill.joules,
        decode_j_per_token=None if tokens is None else tokens.decode.joules,
        windows=kept,
        notes=tuple(dict.fromkeys([*notes, *events])),
    )


def not_measured(reason: str) -> EnergyRecord:
    """Return the record of a run without a sensor."""
    return _without_windows("not measured", (reason,))


def modelled(profile: DeviceProfile, busy_s: float, inferences: int) -> EnergyRecord:
    """Return what the power in a device's profile would make of a time: for those who ask for it, and never a measurement.

    Args:
        profile: Of the device, with its power under load.
        busy_s: How long the inferences took on that device.
        inferences: How many.

    Raises:
        MeterError: The profile has no power under load, or nothing ran.
    """
    load, idle = profile.power.load_w, profile.power.idle_w
    if load is None:
        raise MeterError(
            f"The profile '{profile.name}' has no power under load, so no energy can be modelled. Measure it, or give one."
        )
    if inferences < 1 or busy_s <= 0:
        raise MeterError(f"An energy of {inferences} inferences in {busy_s:g} s makes no sense. Run some.")
    gross_j = load.value * busy_s
    net_j = None if idle is None else gross_j - idle.value * busy_s
    notes = [
        f"modelled as time x power, not measured: {profile.title} is taken to draw {_told(load)} while it infers",
        "the power under load is that of another program, and differs between models, clocks and boards",
    ]
    notes.append("no power at rest is known" if idle is None else f"at rest it is taken to draw {_told(idle)}")
    return _without_windows(
        "modelled",
        tuple(notes),
        inferences=inferences,
        gross_j=gross_j,
        net_j=net_j,
        idle_w=None if idle is None else idle.value,
        per_inference_j=(gross_j if net_j is None else net_j) / inferences,
    )


def _told(power: Fact[float]) -> str:
    note = f"; {power.note}" if power.note else ""
    return f"{power.value:g} W ({power.kind}: {power.source}{note})"


def _without_windows(
    method: Literal["modelled", "not measured"],
    notes: tuple[str, ...],
    *,
    inferences: int | None = None,
    gross_j: float | None = None,
    net_j: float | None = None,
    idle_w: float | None = None,
    per_inference_j: float | None = None,
) -> EnergyRecord:
    return EnergyRecord(
        method=method,
        scope=None,
        sensor=None,
        rate_hz=None,
        inferences=inferences,
        gross_j=gross_j,
        net_j=net_j,
        idle_w=idle_w,
        per_inference_j=per_inference_j,
        uncertainty_j=None,
        standard_j=None,
        prefill_j_per_token=None,
        decode_j_per_token=None,
        windows=(),
        notes=notes,
    )


def _window(energy: NetEnergy | Energy) -> EnergyWindow:
    gross = energy.gross if isinstance(energy, NetEnergy) else energy
    of_net = energy if isinstance(energy, NetEnergy) else None
    return EnergyWindow(
        duration_s=gross.duration_s,
        gross_j=gross.joules,
        net_j=None if of_net is None else of_net.joules,
        idle_w=None if of_net is None else of_net.idle_w,
        uncertainty_j=energy.uncertainty_j,
        standard_j=energy.standard_j,
        readings=gross.readings,
        reliable=energy.reliable,
        reason=energy.reason,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """Return the sum; None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
