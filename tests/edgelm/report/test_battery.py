from __future__ import annotations

import dataclasses

import edgelm_device_profiles as device_profiles
import pytest
from report_factory import energy_of
from run_factory import make_run

from edgelm.bench import ProfileFacts, Run
from edgelm.report.battery import Battery, answers_per_charge, battery_of, battery_of_profile
from edgelm.report.figures import NotMeasured, figures_of


def _on(profile: str, *, match: bool = True) -> Run:
    facts = ProfileFacts(name=profile, title=profile, match=match, detected=None, statement="For a test.")
    return dataclasses.replace(make_run(), profile=facts, energy=energy_of(0.012, scope="device"))


def test_a_phones_battery_is_its_profiles() -> None:
    battery = battery_of(_on("pixel-8"), None)
    assert battery is not None
    # Google states 4,575 mAh and 3.89 V for it; 3.85 V for every phone is within 2 % of that.
    assert battery.watt_hours == pytest.approx(4.575 * 3.89, rel=0.02)
    assert "4,575 mAh" in battery.source


def test_what_is_given_counts_first() -> None:
    assert battery_of(_on("pixel-8"), 40.0) == Battery(40.0, "as given")


@pytest.mark.parametrize("run", [_on("pixel-8", match=False), _on("raspberry-pi-5"), _on("a-board-of-mine")])
def test_no_battery_is_made_up(run: Run) -> None:
    assert battery_of(run, None) is None
    figure = figures_of(run, None)["answers_per_charge"]
    assert isinstance(figure, NotMeasured)
    assert "--battery-wh" in figure.reason


def test_a_charge_pays_for_rest_too() -> None:
    run = _on("pixel-8")
    battery = battery_of(run, None)
    assert battery is not None
    # 12 mJ net are 16 mJ gross in `energy_of`.
    assert figures_of(run, battery)["answers_per_charge"] == pytest.approx(answers_per_charge(battery, 0.016))
    assert answers_per_charge(Battery(1.0, ""), 1.0) == 3600


def test_every_profile_with_a_battery_is_a_phone() -> None:
    for name in device_profiles.names():
        profile = device_profiles.load(name)
        assert (battery_of_profile(profile) is not None) == (profile.category == "phone"), name
