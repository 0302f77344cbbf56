"""``edgelm benchmark --on``: what the device is asked, and what comes back. tests/edgelm/deploy reaches a real one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from bundle_factory import make_classifier_bundle
from click.testing import CliRunner

import edgelm.deploy
from edgelm import bench
from edgelm.cli import cli
from edgelm.errors import InputError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What `edgelm.deploy.benchmark_on` is called with; it answers with a run of this machine."""
    calls: list[Any] = []
    bundle = make_classifier_bundle(tmp_path, fake_files=True)

    def benchmark_on(path: Path, host: str, *, arguments: list[str], **options: Any) -> list[dict[str, Any]]:
        calls.append((path, host, arguments, options["ssh_config"]))
        runs = bench.benchmark([bundle], mode="quick", runtime=("fake",), queries=3, seconds=1.0)
        return [json.loads(run.to_json()) for run in runs]

    monkeypatch.setattr(edgelm.deploy, "benchmark_on", benchmark_on)
    return calls


def test_the_device_gets_the_options_that_were_given_and_the_runs_are_written_here(
    asked: list[Any], tmp_path: Path
) -> None:
    output = tmp_path / "run.json"
    command = [
        "benchmark",
        "a.edgelm",
        "--on",
        "pi@board",
        "--runtime",
        "litert",
        "--runtime",
        "onnx",
        "--mode",
        "quick",
    ]
    done = CliRunner().invoke(cli, [*command, "--seconds", "2.5", "--model-energy", "-p", "64", "-o", str(output)])
    assert done.exit_code == 0, done.output
    ((path, host, arguments, ssh_config),) = asked
    assert (path, host, ssh_config) == (Path("a.edgelm"), "pi@board", None)
    pairs = {("--runtime", "litert"), ("--runtime", "onnx"), ("--mode", "quick"), ("--seconds", "2.5")}
    pairs |= {("--prefill-tokens", "64")}
    assert pairs <= set(itertools.pairwise(arguments))
    assert len(arguments) == 2 * len(pairs) + 1
    assert "--model-energy" in arguments
    (run,) = bench.log.read([output])
    assert run.results.queries == 3
    assert "p50 ms" in done.output


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["b.edgelm"], "--on measures one bundle, and 2"),
        (["--resume", "run.json"], "--resume names a file of this machine"),
    ],
)
def test_what_does_not_go_there_is_refused(asked: list[Any], more: list[str], why: str) -> None:
    done = CliRunner().invoke(cli, ["benchmark", "a.edgelm", "--on", "pi@board", *more])
    assert isinstance(done.exception, InputError)
    assert why in str(done.exception)
    assert not asked
