"""Energy meters: read them, integrate them, and say how far the figure can be off.

>>> found = [meter for meter in find_meters() if meter.state == "usable"]
>>> with Sampler(found[0].meter) as sampler:
...     start = sampler.mark()
...     run_the_model(times=1000)
...     end = sampler.mark()
>>> energy = energy_between(sampler.trace(), start, end)
>>> per_unit(energy, 1000).joules, energy.reliable

`docs/energy.md` has what each meter sees and does not see.
"""

from edgelm.meters.account import NetEnergy, PerUnit, TokenEnergy, net, per_token, per_unit
from edgelm.meters.align import SYNC_PATTERN_S, Alignment, align
from edgelm.meters.android import AndroidMeter
from edgelm.meters.energy import Energy, energy_between, window_needed_s
from edgelm.meters.fake import FakeMeter
from edgelm.meters.find import Found, find_meters
from edgelm.meters.hwmon import InaMeter
from edgelm.meters.jetson import JetsonMeter
from edgelm.meters.lines import LineMeter, open_serial, open_stdin
from edgelm.meters.meter import Meter, MeterFacts, Reading
from edgelm.meters.pmic import PmicMeter
from edgelm.meters.rapl import RaplMeter
from edgelm.meters.record import EnergyRecord, EnergyWindow, measured, modelled, not_measured
from edgelm.meters.sampler import Sampler
from edgelm.meters.table import load_meter_csv
from edgelm.meters.trace import Trace, make_trace, unwrap

__all__ = [
    "SYNC_PATTERN_S",
    "Alignment",
    "AndroidMeter",
    "Energy",
    "EnergyRecord",
    "EnergyWindow",
    "FakeMeter",
    "Found",
    "InaMeter",
    "JetsonMeter",
    "LineMeter",
    "Meter",
    "MeterFacts",
    "NetEnergy",
    "PerUnit",
    "PmicMeter",
    "RaplMeter",
    "Reading",
    "Sampler",
    "TokenEnergy",
    "Trace",
    "align",
    "energy_between",
    "find_meters",
    "load_meter_csv",
    "make_trace",
    "measured",
    "modelled",
    "net",
    "not_measured",
    "open_serial",
    "open_stdin",
    "per_token",
    "per_unit",
    "unwrap",
    "window_needed_s",
]
