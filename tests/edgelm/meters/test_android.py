"""The battery of a phone: what `dumpsys battery` prints, and the signs and units that drivers have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgelm.errors import MeterError
from edgelm.meters import AndroidMeter
from edgelm.meters.android import calibrate, parse_battery, parse_dumpsys

PLUGGED = """\
Current Battery Service state:
  AC powered: true
  USB powered: false
  Wireless powered: false
  Max charging current: 1500000
  Max charging voltage: 5000000
  Charge counter: 2448973
  status: 2
  health: 2
  present: true
  level: 94
  scale: 100
  voltage: 4248
  temperature: 280
  technology: Li-ion
"""
UNPLUGGED = PLUGGED.replace("AC powered: true", "AC powered: false").replace("status: 2", "status: 3")
# A Samsung, which adds lines of its own: "voltage" and "status" must be those of the service.
SAMSUNG = """\
Current Battery Service state:
  mBootCompleted: true
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 0
  Max charging voltage: 0
  Charge counter: 0
  status: 2
  health: 2
  present: true
  level: 84
  scale: 100
  voltage: 4063
  temperature: 326
  technology: Li-ion
  batterySWSelfDischarging: false
  batteryMiscEvent: 0
  batteryCurrentEvent: 0
  mSecPlugTypeSummary: 2
  LED Charging: true
  LED Low Battery: true
  current now: 321
  charge counter: 0
  Adaptive Fast Charging Settings: true
"""


class Phone:
    """Answers what adb would; `current` and `voltage` as its driver has them."""

    def __init__(self, current: int, voltage: int = 4_248_000, state: str = UNPLUGGED) -> None:
        self.current, self.voltage, self.state = current, voltage, state

    def __call__(self, arguments: Sequence[str]) -> str:
        assert arguments[:2] == ("adb", "shell")
        return self.state if arguments[2] == "dumpsys" else f"{self.current}\n{self.voltage}\n"


def test_dumpsys() -> None:
    state = parse_dumpsys(PLUGGED)
    assert (state.chargers, state.discharging, state.voltage_v, state.level_percent) == (("AC",), False, 4.248, 94)
    assert parse_dumpsys(UNPLUGGED).chargers == ()
    samsung = parse_dumpsys(SAMSUNG)
    assert (samsung.chargers, samsung.voltage_v, samsung.level_percent) == (("USB",), 4.063, 84)
    # A TV box says "voltage: 13": nothing to compare with.
    assert parse_dumpsys("  voltage: 13\n").voltage_v is None


@pytest.mark.parametrize(
    ("current", "voltage", "words"),
    [
        (-412_345, 4_248_000, "negative"),  # as the kernel's documentation has it
        (412_345, 4_248_000, "positive"),  # the other way round
        (-412, 4248, "negative"),  # mA and mV
        (412, 4_248_000, "positive"),  # mA and µV
    ],
)
def test_sign_and_unit_are_found_while_unplugged(current: int, voltage: int, words: str) -> None:
    meter = AndroidMeter(run=Phone(current, voltage), now=lambda: 0.0)
    meter.open()
    # 0.412 A at 4.248 V; what is below a milliampere is lost where the driver counts in these.
    assert meter.read().value == pytest.approx(0.412 * 4.248, abs=0.001 * 4.248)
    assert meter.calibration is not None
    assert words in meter.calibration.evidence
    meter.close()
    with pytest.raises(MeterError, match=r"open\(\) first"):
        meter.read()


@pytest.mark.parametrize(
    ("phone", "message"),
    [
        (Phone(-412_345, state=PLUGGED), "AC.*Wi-Fi"),
        (Phone(-412_345, state=UNPLUGGED.replace("status: 3", "status: 4")), "not discharging"),
        (Phone(-412_345, state="  (UPDATES STOPPED -- use 'reset' to restart)\n" + UNPLUGGED), "battery reset"),
        (Phone(0), "must be drawn all the time"),
        (Phone(-3), "outside of what"),
        (Phone(-50_000_000), "outside of what"),
        (Phone(-2147483648), "does not know"),
        (Phone(-412_345, voltage=13), "none of a battery"),
        (Phone(-412_345, voltage=3_500_000), "do not agree"),
    ],
)
def test_what_cannot_be_trusted_is_refused(phone: Phone, message: str) -> None:
    with pytest.raises(MeterError, match=message):
        AndroidMeter(run=phone).open()


def test_a_current_of_both_signs_is_refused() -> None:
    with pytest.raises(MeterError, match="the sign cannot be told"):
        calibrate(parse_dumpsys(UNPLUGGED), [(-400_000, 4_200_000), (200_000, 4_200_000)])


def test_files_that_only_root_may_read() -> None:
    with pytest.raises(MeterError, match="external meter"):
        parse_battery("cat: /sys/class/power_supply/battery/current_now: Permission denied\n")


def test_a_charger_that_comes_meanwhile_is_noticed() -> None:
    phone = Phone(-412_345)
    meter = AndroidMeter(run=phone)
    meter.open()
    phone.current = 900_000
    with pytest.raises(MeterError, match="a charger was plugged in"):
        meter.read()
