from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_factory import make_run

from edgelm.bench import Run, log
from edgelm.errors import InputError, OutputError

RUNS = [make_run(queries=5, seed=seed) for seed in range(3)]


def _fail(message: str) -> None:
    raise AssertionError(message)


def test_append_and_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for run in RUNS:
        log.append(run, path)
    assert path.read_bytes().count(b"\n") == len(RUNS)
    assert log.read([path], warn=_fail) == RUNS


@pytest.mark.parametrize("name", ["runs.json", "runs.jsonl"])
@pytest.mark.parametrize("runs", [RUNS, RUNS[:1]])
def test_write_and_read(tmp_path: Path, name: str, runs: list[Run]) -> None:
    log.write(runs, tmp_path / name)
    assert log.read([tmp_path / name], warn=_fail) == runs


def test_one_run_is_written_as_itself(tmp_path: Path) -> None:
    log.write(RUNS[:1], tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["id"] == RUNS[0].id


def test_write_replaces_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        log.write(RUNS, path)
    assert path.read_text() == "mine"
    log.write(RUNS, path, force=True)
    assert log.read([path]) == RUNS
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


def test_write_says_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        log.write(RUNS, tmp_path / "missing" / "run.json")
    with pytest.raises(OutputError, match="cannot be written"):
        log.append(RUNS[0], tmp_path / "missing" / "runs.jsonl")


def test_a_run_in_two_files_comes_once(tmp_path: Path) -> None:
    log.write(RUNS, tmp_path / "all.json")
    log.append(RUNS[1], tmp_path / "log.jsonl")
    assert log.read([tmp_path / "log.jsonl", tmp_path / "all.json"]) == [RUNS[1], RUNS[0], RUNS[2]]


@pytest.mark.parametrize("kept", [1, 100, 2000, -2])
def test_a_cut_off_last_line_is_reported_and_the_rest_read(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "runs.jsonl"
    line = make_run(queries=5, name="ünïcode").to_json().encode()
    path.write_bytes(RUNS[0].to_json().encode() + b"\n" + line[:kept])
    said: list[str] = []
    assert log.read([path], warn=said.append) == RUNS[:1]
    assert len(said) == 1
    assert "line 2 is cut off" in said[0]


def test_a_line_may_be_cut_in_the_middle_of_a_character(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    line = make_run(queries=5, name="ü").to_json().encode()
    path.write_bytes(RUNS[0].to_json().encode() + b"\n" + line[: line.index("ü".encode()) + 1])
    with pytest.warns(UserWarning, match="line 2 is cut off"):
        assert log.read([path]) == RUNS[:1]


def test_append_after_a_cut_off_line_begins_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(RUNS[0].to_json().encode()[:500])
    log.append(RUNS[1], path)
    said: list[str] = []
    assert log.read([path], warn=said.append) == [RUNS[1]]
    assert "line 1 is cut off" in said[0]


def test_a_line_separator_in_a_name_does_not_end_a_line(tmp_path: Path) -> None:
    run = make_run(queries=2, name="a\u2028b\x85c\x0cd")
    log.append(run, tmp_path / "runs.jsonl")
    assert log.read([tmp_path / "runs.jsonl"], warn=_fail) == [run]


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    newer = json.dumps({**json.loads(RUNS[0].to_json()), "schema_version": 3})
    for name, content, message in [
        ("foreign.json", b'{"a": 1}', "not a run"),
        ("damaged.json", RUNS[0].to_json().encode()[:-9], "not valid JSON"),
        ("empty.json", b"", "not valid JSON"),
        ("none.json", b"[]", "holds no run"),
        ("image.json", b"\x89PNG\x00\xff", "not valid JSON"),
        ("newer.json", newer.encode(), "Update edgelm"),
        ("newer.jsonl", f"{RUNS[0].to_json()}\n{newer}\n".encode(), "line 2: .*Update edgelm"),
        ("foreign.jsonl", b'{"a": 1}\n', "line 1: .*not a run"),
        ("empty.jsonl", b"", "holds no run"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            log.read([path])
        assert name in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        log.read([tmp_path / "missing.json"])
