"""``edgelm doctor`` in a fresh process, and what it prints of meters that this machine does not have."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgelm.cli import doctor as command
from edgelm.meters import FakeMeter, Found


def _doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgelm", "doctor", *arguments], capture_output=True, text=True)


def test_it_tells_the_machine_the_runtimes_and_the_meters() -> None:
    shown = _doctor()
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in ("machine", "profile", "litert", "RAPL: ", "Raspberry Pi 5 PMIC: ", "external meter: "):
        assert word in shown.stdout


def test_its_json_has_the_same() -> None:
    result = json.loads(_doctor("--json").stdout)
    assert set(result) == {"machine", "detection", "runtimes", "devices", "meters"}
    assert [state["device"] for state in result["devices"]] == ["gpu", "edgetpu"]
    assert {meter["state"] for meter in result["meters"]} <= {"usable", "missing", "denied"}
    assert all((meter["facts"] is not None) == (meter["state"] == "usable") for meter in result["meters"])


def test_a_meter_that_is_denied_comes_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    command._print_meters([Found("RAPL", "denied", None, "this user may not read it", "sudo chmod a+r FILE")])
    assert capsys.readouterr().out.splitlines() == [
        "  RAPL: denied (this user may not read it)",
        "    to get it: sudo chmod a+r FILE",
        "  No meter can be read, so energy is not measured here.",
    ]


def test_a_meter_that_is_usable_is_told_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    found = Found("fake", "usable", FakeMeter(lambda time_s: 1.0), "board, 100 Hz", None)
    command._print_meters([found])
    assert capsys.readouterr().out.splitlines() == ["  fake: usable (board, 100 Hz)"]
    assert command._meter(found)["facts"]["scope"] == "board"
