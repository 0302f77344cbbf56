"""How many answers a battery gives."""

from __future__ import annotations

from dataclasses import dataclass

import edgelm_device_profiles as device_profiles
from edgelm_device_profiles import DeviceProfile

from edgelm.bench import GenerationRun, Run
from edgelm.errors import ProfileError

__all__ = ["Battery", "answers_per_charge", "battery_of", "battery_of_profile"]

_JOULES_PER_WATT_HOUR = 3600.0
# The profiles have the charge, as makers state it. Phones' lithium-ion cells have a nominal voltage of 3.8 to 3.9 V (that of
# the Pixel 8 is 3.89 V, of the Galaxy S24 3.88 V): within 2 % of this.
_CELL_V = 3.85


@dataclass(frozen=True)
class Battery:
    """A battery.

    Attributes:
        watt_hours: When full.
        source: Who says so.
    """

    watt_hours: float
    source: str


def battery_of(run: Run | GenerationRun, given_wh: float | None) -> Battery | None:
    """Return the battery that a run's device has.

    Args:
        run: Its profile tells, where the run was on that device.
        given_wh: What the user says, which counts before the profile; None if nothing.
    """
    if given_wh is not None:
        return Battery(given_wh, "as given")
    if run.profile is None or not run.profile.match:
        return None
    try:
        return battery_of_profile(device_profiles.load(run.profile.name))
    except ProfileError:
        return None  # a profile of the user's own, which this machine does not have


def battery_of_profile(profile: DeviceProfile) -> Battery | None:
    """Return the battery of a device; None where its profile has none."""
    charge = profile.power.battery_capacity_mah
    if charge is None:
        return None
    return Battery(charge.value / 1e3 * _CELL_V, f"{charge.value:,.0f} mAh ({charge.source}) at {_CELL_V} V")


def answers_per_charge(battery: Battery, joules: float) -> float:
    """Return how many times a full battery gives that energy, all of it used for nothing else."""
    return battery.watt_hours * _JOULES_PER_WATT_HOUR / joules
