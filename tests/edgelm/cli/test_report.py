"""``edgelm report``: what it prints, writes and refuses, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from report_factory import LLAMA_BENCH, make_generation_run
from run_factory import make_run

from edgelm.bench import log
from edgelm.cli import cli
from edgelm.errors import EdgelmError


def edgelm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.json"
    log.write([make_run(name="small"), make_run(name="large", median_s=0.02, size_bytes=20_000_000, seed=1)], path)
    return path


@pytest.mark.parametrize("ending", ["html", "md", "json"])
def test_writes_a_report_of_all_kinds(runs: Path, tmp_path: Path, ending: str) -> None:
    foreign, generation, page = tmp_path / "llama.json", tmp_path / "writing.jsonl", tmp_path / f"report.{ending}"
    foreign.write_text(LLAMA_BENCH, encoding="utf-8")
    log.write([make_generation_run()], generation)
    told = edgelm(runs, foreign, generation, "-o", page)
    assert (told.exit_code, told.output) == (0, f"{page}\n")
    text = page.read_text(encoding="utf-8")
    for name in ("small", "large", "stories", "qwen2.5-0.5b-instruct"):
        assert name in text


def test_a_check_that_passes(runs: Path) -> None:
    told = edgelm(runs, "--check", "p90 < 1s and accuracy > 85%")
    assert told.exit_code == 0
    assert [line.split(" in ")[0] for line in told.output.splitlines()] == ["ok    small", "ok    large"]


def test_a_check_that_fails_ends_with_1(runs: Path) -> None:
    told = edgelm(runs, "--check", "size < 6MiB")
    assert told.exit_code == 1
    ok, fails = told.output.splitlines()
    assert ok.startswith("ok    small")
    assert fails.startswith("FAIL  large")
    assert fails.endswith("size is 20.0 MB, and size < 6MiB is asked for")
    assert isinstance(told.exception, EdgelmError)
    assert str(told.exception) == "1 of 2 runs do not keep 'size < 6MiB'."


@pytest.mark.parametrize(("expression", "status"), [("size < 1GB", 0), ("size < 6MiB", 1), ("size <", 2)])
def test_the_exit_status_of_the_program_itself(runs: Path, expression: str, status: int) -> None:
    # What the tests' runner makes of an exception is not what the program's own main does.
    command = [sys.executable, "-c", "from edgelm.cli import main; main()", "report", runs, "--check", expression]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == {0: 0, 1: 1}.get(status, done.stderr.count("\n"))


def test_a_check_writes_its_report_even_where_it_fails(runs: Path, tmp_path: Path) -> None:
    told = edgelm(runs, "--check", "size < 1B", "-o", tmp_path / "report.html")
    assert told.exit_code == 1
    assert (tmp_path / "report.html").exists()


def test_json_on_stdout(runs: Path) -> None:
    checked = edgelm(runs, "--check", "size < 6MiB", "--json")
    assert checked.exit_code == 1
    assert [(each["model"], each["passed"]) for each in json.loads(checked.output)] == [
        ("small", True),
        ("large", False),
    ]
    report = edgelm(runs, "--json", "--battery-wh", "10")
    assert report.exit_code == 0
    assert json.loads(report.output)["format"] == "edgelm-report"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name files of runs"),
        (("RUNS",), "Say where the report goes"),
        (("RUNS", "--check", "p95 < 1ms"), "No figure is called 'p95'"),
        (("RUNS", "--check", "p90 < 20"), "a bare number does not say of what"),
        (("RUNS", "--check", "p90 <"), "the text ends"),
        (("RUNS", "--check", "p90 < 1s", "--battery-wh", "0"), "battery-wh"),
    ],
)
def test_wrong_usage_ends_with_2(runs: Path, arguments: tuple[str, ...], message: str) -> None:
    told = edgelm(*(runs if each == "RUNS" else each for each in arguments))
    assert told.exit_code == 2
    # Click wraps its messages.
    assert message in " ".join(told.output.split())


def test_expected_failures_are_one_line_and_leave_nothing(runs: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.html"
    kept.write_text("mine", encoding="utf-8")
    for arguments, message in (
        ((runs, "-o", kept), "--force"),
        ((runs, "-o", tmp_path / "a.pdf"), "neither in .html"),
        ((tmp_path / "nowhere.json", "-o", tmp_path / "a.html"), "cannot be read"),
    ):
        told = edgelm(*arguments)
        assert isinstance(told.exception, EdgelmError)
        assert message in str(told.exception)
        assert "\n" not in str(told.exception)
    assert kept.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.html", "runs.json"]


def test_all_takes_the_log_of_the_user(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "edgelm").mkdir()
    log.append(make_run(name="logged", seed=5), tmp_path / "edgelm" / "runs.jsonl")
    told = edgelm("--all", runs, "--check", "p50 < 1s")
    assert told.exit_code == 0
    assert {line.split()[1] for line in told.output.splitlines()} == {"small", "large", "logged"}
