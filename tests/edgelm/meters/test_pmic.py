"""The Raspberry Pi 5's power controller, on what boards printed."""

from __future__ import annotations

import pytest

from edgelm.errors import MeterError
from edgelm.meters import PmicMeter
from edgelm.meters.pmic import COMMAND, parse_pmic

# An idle Raspberry Pi 5.
IDLE = """\
 3V7_WL_SW_A current(0)=0.07709848A
   3V3_SYS_A current(1)=0.04782057A
   1V8_SYS_A current(2)=0.11515970A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17664330A
    0V8_SW_A current(6)=0.33084030A
  VDD_CORE_A current(7)=0.94657990A
   3V3_DAC_A current(17)=0.00146520A
   3V3_ADC_A current(18)=0.00140415A
   0V8_AON_A current(16)=0.00494505A
      HDMI_A current(22)=0.01697190A
 3V7_WL_SW_V volt(8)=3.69049700V
   3V3_SYS_V volt(9)=3.29982600V
   1V8_SYS_V volt(10)=1.79633500V
  DDR_VDD2_V volt(11)=1.10805800V
  DDR_VDDQ_V volt(12)=0.60329610V
   1V1_SYS_V volt(13)=1.10146400V
    0V8_SW_V volt(14)=0.80219700V
  VDD_CORE_V volt(15)=0.72097620V
   3V3_DAC_V volt(20)=3.30402600V
   3V3_ADC_V volt(21)=3.29670000V
   0V8_AON_V volt(19)=0.79941320V
      HDMI_V volt(23)=5.11612000V
     EXT5V_V volt(24)=5.11478000V
      BATT_V volt(25)=0.01880340V
"""
# The same rails with every core busy, VDD_CORE alone of them.
BUSY = IDLE.replace("current(7)=0.94657990A", "current(7)=5.03652000A").replace(
    "volt(15)=0.72097620V", "volt(15)=0.89369880V"
)


def test_rails_with_current_and_voltage_are_added() -> None:
    found = parse_pmic(IDLE)
    assert len(found.rails_w) == 12
    assert found.voltage_only == ("EXT5V", "BATT")
    assert found.rails_w["VDD_CORE"] == pytest.approx(0.94657990 * 0.72097620)
    # Added by hand: 0.284532 + 0.157800 + 0.206865 + 0.008651 + 0.194566 + 0.265399 + 0.682462 + 0.004841 + 0.004629
    # + 0.003953 + 0.086830, each rounded to 1 µW.
    assert found.power_w == pytest.approx(1.900528, abs=12e-6)
    assert parse_pmic(BUSY).power_w - found.power_w == pytest.approx(5.03652 * 0.8936988 - 0.9465799 * 0.7209762)


def test_the_meter_says_what_it_does_not_see() -> None:
    calls = []
    meter = PmicMeter(run=lambda arguments: calls.append(tuple(arguments)) or IDLE, now=lambda: 3.0)
    meter.open()
    assert meter.read().value == pytest.approx(parse_pmic(IDLE).power_w)
    assert calls == [COMMAND, COMMAND]
    assert (meter.facts.scope, meter.facts.method) == ("board", "measured")
    assert "USB devices" in " ".join(meter.facts.unseen)


def test_the_fit_to_the_wall_is_marked_as_modelled() -> None:
    meter = PmicMeter(wall_estimate=True, run=lambda arguments: IDLE)
    assert (meter.facts.scope, meter.facts.method) == ("wall", "modelled")
    assert meter.read().value == pytest.approx(1.1451 * parse_pmic(IDLE).power_w + 0.5879)


@pytest.mark.parametrize(
    "text",
    [
        'error=1 error_msg="Command not registered"\n',  # a Raspberry Pi 4
        "",
        "     EXT5V_V volt(24)=5.11478000V\n",
        "  VDD_CORE_A current(7)=0.9A\n VDD_CORE_V volt(15)=nanV\n",
    ],
)
def test_another_board_is_refused(text: str) -> None:
    with pytest.raises(MeterError, match="no rail with a current and a voltage"):
        parse_pmic(text)
