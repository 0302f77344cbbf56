"""The command: what it asks of the library, what it prints, what it writes, and in which order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundle_factory import make_classifier_bundle
from click.testing import CliRunner
from in_process import without_processes
from run_factory import make_run

from edgelm.bench import Run, benchmark, log
from edgelm.cli import cli
from edgelm.errors import EdgelmError


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier_bundle(tmp_path_factory.mktemp("bundles"), fake_files=True)


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["benchmark", "--runtime", "fake", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit | EdgelmError):
        raise result.exception
    return result.exit_code, result.output + str(result.exception or "")


def test_two_are_compared_and_their_energy_is_told(bundle: Path, tmp_path: Path) -> None:
    output, runs_log = tmp_path / "run.json", tmp_path / "runs.jsonl"
    status, text = invoke(
        bundle, bundle, "--queries", "20", "--meter", "fake", "--energy-seconds", "0.1", "-o", output, "--log", runs_log
    )
    assert status == 0, text
    assert "its latency (" in text
    assert "at 99%, 20 turns)" in text
    assert "modelled," in text
    assert "net of idle" in text
    assert "(not to be relied on)" in text
    assert "benchmark's own cost" in text
    runs = log.read([output])
    assert log.read([runs_log]) == runs
    assert len(runs) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "runs.jsonl", "runs.samples"]


def test_a_rate_is_real_time(bundle: Path) -> None:
    status, text = invoke(
        bundle, "--rate", "100", "--arrivals", "fixed", "--seconds", "0.3", "--deadline-ms", "5000", "--meter", "none"
    )
    assert status == 0, text
    assert "100 a second (fixed): 100.0% within 5000 ms" in text
    assert "30 of 30 served" in text


def test_other_modes(bundle: Path) -> None:
    status, text = invoke(bundle, "--mode", "mlperf", "--queries", "20", "--meter", "none")
    assert status == 0, text
    assert "ns, INVALID" in text
    status, text = invoke(bundle, "--mode", "sustained", "--seconds", "0.4", "--meter", "none", "--json")
    assert status == 0, text
    (run,) = json.loads(text)
    assert run["sustained"]["checkpoints"]
    assert "Did you mean 'quick'" in invoke(bundle, "--mode", "quik")[1]
    status, text = invoke(bundle, "--mode", "quick", "--queries", "2")
    assert "a quick run measures no energy unless a meter is named" in text


def test_what_was_stopped_is_resumed(bundle: Path, tmp_path: Path) -> None:
    (whole,) = benchmark(bundle, runtime="fake", queries=5, meter="none")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(whole.to_json().replace('"stopped":null', '"stopped":"Ctrl-C"'), encoding="utf-8")
    status, text = invoke(bundle, "--queries", "8", "--meter", "none", "--resume", first, "-o", second)
    assert status == 0, text
    run = Run.from_json(second.read_text(encoding="utf-8"))
    assert (run.results.queries, run.settings.resumed) == (8, 1)
    assert run.samples.latency_s[:5] == whole.samples.latency_s
    other = tmp_path / "other.json"
    other.write_text(make_run().to_json(), encoding="utf-8")
    assert "was not stopped" in invoke(bundle, "--resume", other)[1]


def test_a_disk_that_is_full_at_the_end_costs_the_file_and_not_the_figures(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgelm.errors import OutputError

    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(log, "write", full)
    status, text = invoke(bundle, "--queries", "3", "--meter", "none", "-o", tmp_path / "run.json")
    assert status != 0
    assert text.index("p50 ms") < text.index("the disk is full")
    assert not list(tmp_path.iterdir())
