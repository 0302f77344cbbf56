from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from run_factory import make_run

from edgelm.bench import GenerationRun, Run, log
from edgelm.bench.export import COLUMNS
from edgelm.bench.findings import StoredSamples
from edgelm.cli import cli
from edgelm.errors import EdgelmError, InputError

DATA = Path(__file__).parents[1] / "bench" / "data"
RUNS = [make_run(name=name, queries=20, seed=seed) for seed, name in enumerate(("intents", "intents", "mail"))]


@pytest.fixture
def runs_log(tmp_path: Path) -> Path:
    """A log of this version's runs behind one of an earlier one, and a language model's."""
    path = tmp_path / "runs.jsonl"
    path.write_text((DATA / "run_version_1.json").read_text(encoding="utf-8"), encoding="utf-8")
    for run in RUNS:
        log.append(run, path)
    log.append(GenerationRun.from_json((DATA / "generation_run_version_1.json").read_text(encoding="utf-8")), path)
    return path


def runs(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["runs", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit | EdgelmError):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr + str(result.exception or "")


def test_list(runs_log: Path) -> None:
    status, output, _ = runs("list", "--log", runs_log)
    lines = output.splitlines()
    assert status == 0
    assert len(lines) == 6
    assert lines[0].split()[:3] == ["id", "started", "bundle"]
    assert lines[2].startswith(RUNS[0].id)
    assert "tok/s" in lines[5]
    rows = json.loads(runs("list", "--log", runs_log, "--json", "--bundle", "mail")[1])
    assert [row["id"] for row in rows] == [RUNS[2].id]
    assert rows[0]["p50_s"] == RUNS[2].results.p50_s
    assert len(json.loads(runs("list", "--log", runs_log, "--json", "--last", "2")[1])) == 2
    assert "no such run" in runs("list", "--log", runs_log, "--bundle", "other")[2]
    assert "cannot be read" in runs("list", "--log", runs_log.with_name("none.jsonl"))[2]


def test_the_users_own_log_is_the_default(runs_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert log.default_log() == tmp_path / "data" / "edgelm" / "runs.jsonl"
    (tmp_path / "data" / "edgelm").mkdir(parents=True)
    runs_log.rename(log.default_log())
    assert len(runs("list")[1].splitlines()) == 6
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    assert log.default_log() == Path.home() / ".local/share/edgelm/runs.jsonl"


def test_show(runs_log: Path) -> None:
    status, output, _ = runs("show", RUNS[1].id[:9], "--log", runs_log)
    assert status == 0
    assert f"results.p50_s {RUNS[1].results.p50_s}" in " ".join(output.split())
    assert json.loads(runs("show", RUNS[1].id, "--log", runs_log, "--json")[1])["id"] == RUNS[1].id
    assert "no run whose id begins with 'zz'" in runs("show", "zz", "--log", runs_log)[2]
    assert "5 runs whose id" in runs("show", "", "--log", runs_log)[2]


def test_export(runs_log: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(runs("export", "--log", runs_log)[1])))
    assert len(rows) == 5
    assert tuple(rows[0]) == COLUMNS
    assert rows[1]["id"] == RUNS[0].id
    assert float(rows[1]["p50_s"]) == RUNS[0].results.p50_s
    assert rows[1]["per_inference_j"] == ""  # not measured, and not 0
    (whole,) = json.loads(runs("export", RUNS[0].id, "--log", runs_log, "--format", "json")[1])
    assert Run.from_dict(whole) == RUNS[0]
    output = tmp_path / "runs.csv"
    assert runs("export", "--log", runs_log, "-o", output)[1].strip() == str(output)
    assert "exists" in runs("export", "--log", runs_log, "-o", output)[2]
    model = json.loads(runs("list", "--log", runs_log, "--json")[1])[-1]["id"]
    assert [
        row["n_gen"] for row in json.loads(runs("export", model, "--log", runs_log, "--format", "llama-bench")[1])
    ] == [0, 2]
    assert "language models alone" in runs("export", "--log", runs_log, "--format", "llama-bench")[2]
    assert "--mode mlperf" in runs("export", RUNS[0].id, "--log", runs_log, "--format", "mlperf")[2]
    assert "No format is called 'cvs'. Did you mean 'csv'" in runs("export", "--log", runs_log, "--format", "cvs")[2]


def test_samples_that_are_gone_or_changed_are_said(runs_log: Path) -> None:
    said: list[str] = []
    folder = runs_log.with_suffix(".samples")
    (folder / f"{RUNS[0].id}.npz").unlink()
    (folder / f"{RUNS[1].id}.npz").write_bytes(b"PK")
    found = log.read_all([runs_log], warn=said.append)
    assert [run.id for run in found][1] == RUNS[2].id
    assert "line 2" in said[0]
    assert "cannot be read" in said[0]
    assert "its SHA-256 is another one" in said[1]
    assert len(runs("list", "--log", runs_log)[1].splitlines()) == 6  # a list needs no samples


def test_samples_elsewhere_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for file in ("../secret.npz", str(tmp_path / "x.npz"), ""):
        line = RUNS[0].to_json(StoredSamples(file=file, sha256="0" * 64))
        path.write_text(line + "\n", encoding="utf-8")
        said: list[str] = []
        with pytest.raises(InputError, match="holds no run"):
            log.read_all([path], warn=said.append)
        assert "outside the log's folder" in said[0]


def test_ten_thousand_runs_are_listed_fast(tmp_path: Path) -> None:
    """Not by the clock of the wall: in multiples of what it takes to parse as many lines of that length as JSON."""
    path = tmp_path / "runs.jsonl"
    line = RUNS[0].to_json(StoredSamples(file="runs.samples/x.npz", sha256="0" * 64)) + "\n"
    path.write_text(line * 1000, encoding="utf-8")
    begin = time.process_time()
    for _ in range(1000):
        json.loads(line)
    parsing = time.process_time() - begin
    begin = time.process_time()
    count = sum(1 for _ in log.heads(path))
    took = time.process_time() - begin
    assert count == 1000
    # Reading, cutting and strict numbers cost as much again; five times leaves room for a busy machine.
    assert took < 5 * parsing + 0.05
    # A line of an earlier edgelm with all its samples costs no more than one without.
    old = make_run(queries=20_000).to_json() + "\n"
    path.write_text(old * 20, encoding="utf-8")
    begin = time.process_time()
    assert sum(1 for _ in log.heads(path)) == 20
    cut = time.process_time() - begin
    begin = time.process_time()
    for _ in range(20):
        json.loads(old)
    assert cut < 0.5 * (time.process_time() - begin)
