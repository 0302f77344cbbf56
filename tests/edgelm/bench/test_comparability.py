from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from edgelm_runtimes.machine import FrequencyPolicy, ThermalZone, Throttling
from run_factory import PI, SERVER, make_run, replaced

from edgelm.bench import Background, Conditions, Run
from edgelm.bench.comparability import comparability
from edgelm.meters import not_measured

BASE = make_run()


def hot(**changes: Any) -> Run:
    return dataclasses.replace(BASE, before=dataclasses.replace(BASE.before, **changes))


def energy(scope: str) -> Run:
    record = dataclasses.replace(not_measured("for a test"), method="measured", scope=scope)
    return dataclasses.replace(BASE, energy=record)


CAPPED = Conditions(
    load_average_1min=None,
    thermal_zones=(),
    frequency_policies=(),
    throttling=Throttling(now=("frequency_capped",), occurred=()),
)
SLOW = FrequencyPolicy(
    cpus=(0, 1, 2, 3), governor="powersave", current_hz=None, max_hz=1_500_000_000, hardware_max_hz=None
)
BUSY = Background(others_cores_mean=1.0, others_cores_max=2.0, readings=9, period_s=0.5)


def test_runs_that_differ_only_in_what_is_compared_have_no_reason() -> None:
    assert comparability(BASE, BASE) == ()
    assert comparability(BASE, make_run(name="other", runtime="onnx", recipe="fp32", median_s=0.1, seed=9)) == ()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (dataclasses.replace(BASE, evidence="executed"), "one is measured, the other executed"),
        (make_run(machine=SERVER), "different machines: Raspberry Pi 5 Model B Rev 1.0 and AMD EPYC 9R14"),
        (replaced(BASE, "runtime", runtime_version="2.4.0"), "different versions of litert: 2.3.0 and 2.4.0"),
        (dataclasses.replace(BASE, packages={**BASE.packages, "edgelm": "0.2.0"}), "different versions of edgelm"),
        (replaced(BASE, "machine", kernel="6.6"), "different kernels"),
        (make_run(threads=1), "different numbers of threads: 4 and 1"),
        (make_run(mode="quick"), "different modes: standard and quick"),
        (make_run(inputs="given"), "different inputs"),
        (make_run(warm_up_settled=False), "not both had warmed up"),
        (dataclasses.replace(BASE, stopped="Ctrl-C"), "the second was stopped: Ctrl-C"),
        (
            make_run(machine=dataclasses.replace(PI, frequency_policies=(SLOW,))),
            "different power modes: ondemand up to 2.40 GHz and powersave up to 1.50 GHz",
        ),
        (hot(thermal_zones=(ThermalZone(name="cpu", temperature_c=70.0),)), "different temperatures: 49 °C and 70 °C"),
        (dataclasses.replace(BASE, after=CAPPED), "different limits of the clock: none and frequency capped"),
        (
            dataclasses.replace(BASE, background=BUSY),
            "other processes took 0.0 cores beside one and 1.0 beside the other",
        ),
    ],
)
def test_reasons(other: Run, reason: str) -> None:
    for first, second in ((BASE, other), (other, BASE)):
        reasons = comparability(first, second)
        assert len(reasons) == 1, reasons
    assert reason in comparability(BASE, other)[0]


def test_energies_of_different_scopes() -> None:
    assert comparability(energy("board"), energy("wall")) == ("their energies are of different scopes: board and wall",)
    assert comparability(energy("board"), BASE) == ()
