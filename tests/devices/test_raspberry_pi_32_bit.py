"""What a 32-bit Raspberry Pi can run: tflite-runtime 2.14, the last runtime with a wheel for it, and float32 files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import PI_32_BIT, native

pytestmark = pytest.mark.devices
LANE = "pi32"


def test_a_float32_classifier_is_verified_and_answers_as_on_the_workstation(
    intents: Callable[[str], Path], questions: list[str], tmp_path: Path
) -> None:
    bundle = intents("fp32")
    report = json.loads(PI_32_BIT.edgelm("verify", bundle, "--json", cache=tmp_path))
    checks = {check["runtime"]: check for check in report["runtimes"]}
    assert report["passed"]
    assert checks["tflite"]["status"] == "passed"
    assert checks["litert"]["status"] == "skipped"  # no wheel for armv7l
    there = json.loads(PI_32_BIT.edgelm("run", bundle, questions[0], "--json", cache=tmp_path))
    here = json.loads(native("run", bundle, questions[0], "--json", "--runtime", "litert"))
    assert there["ranking"][0][0] == here["ranking"][0][0]


def test_an_int8_classifier_is_refused_with_the_reason(intents: Callable[[str], Path], tmp_path: Path) -> None:
    """tflite-runtime 2.14 computes int8 weights with a scale for each channel wrongly, without a word."""
    done = PI_32_BIT.run("-m", "edgelm", "run", intents("int8"), "hello", "--runtime", "tflite", cache=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "tflite-runtime 2.14 computes int8 weights" in done.stderr
