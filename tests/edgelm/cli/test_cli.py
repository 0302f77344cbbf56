"""The command line as a user meets it: what is printed where, and the exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bundle_factory import TEXTS, make_classifier_bundle


def edgelm(*arguments: str | Path, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "edgelm", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier_bundle(tmp_path_factory.mktemp("bundle"))


def _one_line(result: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.strip().splitlines() if not line.endswith(" …")]  # steps that were begun
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("edgelm: ")
    return lines[0]


def test_help_lists_every_command_without_loading_any_runtime() -> None:
    result = edgelm("--help")
    assert result.returncode == 0
    for command in ("convert", "run", "benchmark", "report", "inspect", "verify", "pack", "profiles", "doctor"):
        assert f"  {command}" in result.stdout


def test_run_prints_a_line_for_each_text(bundle: Path) -> None:
    result = edgelm("run", bundle, *TEXTS)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(TEXTS)
    assert result.stderr == ""


def test_run_reads_lines_of_stdin(bundle: Path) -> None:
    result = edgelm("run", bundle, stdin="\n".join([TEXTS[0], "", TEXTS[1]]) + "\n")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_run_as_json_is_json(bundle: Path) -> None:
    answer = json.loads(edgelm("run", bundle, "--json", "--top", "2", TEXTS[0]).stdout)
    assert answer["text"] == TEXTS[0]
    assert len(answer["ranking"]) == 2
    assert answer["timing"]["total_s"] > 0


def test_inspect_verify_and_pack(bundle: Path, tmp_path: Path) -> None:
    assert json.loads(edgelm("inspect", bundle, "--json").stdout)["format"] == "edgelm-bundle"
    assert "against Keras" in edgelm("inspect", bundle).stdout
    result = edgelm("verify", bundle)
    assert result.returncode == 0, result.stderr
    assert "passed" in result.stdout
    packed = tmp_path / "one.edgelm"
    assert edgelm("pack", bundle, "-o", packed).returncode == 0
    assert packed.is_file()
    assert edgelm("run", packed, TEXTS[0]).stdout.split()[0] == edgelm("run", bundle, TEXTS[0]).stdout.split()[0]
    assert "exists" in _one_line(edgelm("pack", bundle, "-o", packed))


def test_benchmark_and_report(bundle: Path, tmp_path: Path) -> None:
    run, log, page = tmp_path / "run.json", tmp_path / "runs.jsonl", tmp_path / "report.html"
    result = edgelm(
        "benchmark", bundle, "--runtime", "onnx", "--queries", "20", "-o", run, "--log", log, "--deadline-ms", "1000",
        "--profile", "raspberry-pi-5",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "not measured" in result.stdout
    assert "not on Raspberry Pi 5" in result.stderr
    assert json.loads(run.read_text())["results"]["queries"] >= 20
    assert len(log.read_text().splitlines()) == 1
    assert edgelm("report", run, "-o", page).stdout.strip() == str(page)
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    assert "exists" in _one_line(edgelm("report", run, "-o", page))
    assert "exists" in _one_line(edgelm("benchmark", bundle, "--queries", "1", "-o", run))


def test_profiles_and_doctor() -> None:
    assert "raspberry-pi-5" in edgelm("profiles", "list").stdout
    shown = edgelm("profiles", "show", "raspberry-pi-5").stdout
    assert "vendor" in shown
    assert "derived" in shown
    assert edgelm("profiles", "detect").returncode == 0
    assert "Did you mean 'raspberry-pi-5'" in _one_line(edgelm("profiles", "show", "rasberry-pi-5"))
    result = edgelm("doctor")
    assert result.returncode == 0, result.stderr
    assert "litert" in result.stdout
    assert {state["runtime"] for state in json.loads(edgelm("doctor", "--json").stdout)["runtimes"]} >= {
        "litert",
        "onnx",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("convert", "m.keras"),
        ("nonsense",),
        ("benchmark",),
        ("run", "b", "--threads", "none"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = edgelm(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_bad_input_is_one_line_and_exit_1(bundle: Path, tmp_path: Path) -> None:
    assert "none.edgelm" in _one_line(edgelm("run", tmp_path / "none.edgelm", "hello"))
    assert "empty" in _one_line(edgelm("run", bundle, "  "))
    assert "No runtime is called 'litret'. Did you mean 'litert'" in _one_line(
        edgelm("run", bundle, "hello", "--runtime", "litret")
    )
    assert "npu" in _one_line(edgelm("run", bundle, "hello", "--device", "npu"))
    assert "There is no model at" in _one_line(edgelm("convert", tmp_path / "m.keras", "-o", tmp_path / "m.edgelm"))
    foreign = tmp_path / "foreign.edgelm"
    foreign.write_bytes(b"\x00" * 100)
    _one_line(edgelm("inspect", foreign))


def test_a_tampered_bundle_is_refused_by_every_command(bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy.edgelm"
    shutil.copytree(bundle, copy)
    model = next(copy.glob("model.onnx"))
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    for command in (("run", copy, "hello"), ("inspect", copy), ("verify", copy), ("benchmark", copy)):
        assert "model.onnx is not the file that was written" in _one_line(edgelm(*command))


def test_ctrl_c_is_one_line_and_130(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgelm", "run", str(bundle)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(TEXTS[0] + "\n")
    process.stdin.flush()
    process.stdout.readline()  # it is past its imports and waits for the next line
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["edgelm: Interrupted; nothing half-written was left."]


def test_a_closed_pipe_is_told_to_nobody() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "edgelm", "profiles", "list"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert result.stderr == ""
