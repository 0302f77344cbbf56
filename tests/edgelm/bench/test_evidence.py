from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from run_factory import PI, SERVER, make_run

from edgelm.bench.evidence import find_evidence

CPU = make_run().runtime


def test_real_hardware(tmp_path: Path) -> None:
    for machine in (PI, SERVER, dataclasses.replace(SERVER, kernel="6.1.0-28-amd64")):
        found = find_evidence(machine, CPU, root=tmp_path)
        assert (found.level, found.reason) == ("measured", "no sign of an emulated processor or of a software driver")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"emulated_on": "x86_64"}, "the kernel is of x86_64, the program of aarch64"),
        ({"kernel": "6.1.0-28-amd64"}, "is not of aarch64"),
        ({"kernel": "6.14.5-300.fc42.x86_64"}, "is not of aarch64"),
        ({"cpu_model": "QEMU TCG CPU version 2.5+"}, "calls itself QEMU TCG"),
    ],
)
def test_signs_of_an_emulated_processor(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = find_evidence(dataclasses.replace(PI, **changes), CPU, root=tmp_path)
    assert found.level == "executed"
    assert reason in found.reason


@pytest.mark.parametrize(("state", "level"), [("enabled", "executed"), ("disabled", "measured")])
def test_a_handler_for_programs_of_this_very_architecture(tmp_path: Path, state: str, level: str) -> None:
    folder = tmp_path / "proc/sys/fs/binfmt_misc"
    folder.mkdir(parents=True)
    (folder / "qemu-aarch64").write_text(f"{state}\ninterpreter /usr/bin/qemu-aarch64-static\nflags: F\n")
    assert find_evidence(PI, CPU, root=tmp_path).level == level
    assert find_evidence(SERVER, CPU, root=tmp_path).level == "measured"  # there it runs the programs of boards


@pytest.mark.parametrize("name", ["SwiftShader Device (LLVM 16.0.0)", "llvmpipe (LLVM 15)", "lavapipe"])
def test_a_software_driver(tmp_path: Path, name: str) -> None:
    gpu = dataclasses.replace(CPU, device="gpu", notes=(f"the GPU is {name}",))
    found = find_evidence(PI, gpu, root=tmp_path)
    assert found.level == "executed"
    assert "what a GPU should" in found.reason
