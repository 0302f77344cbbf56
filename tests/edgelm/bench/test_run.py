from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_factory import PI, SERVER, make_run, replaced

from edgelm.bench import Run
from edgelm.errors import InputError

TOOL = Path(__file__).parents[2] / "tools" / "make_run_schema.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_run_schema", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_schema_is_that_of_the_classes(tool: ModuleType) -> None:
    assert tool.SCHEMA.read_text(encoding="utf-8") == tool.make(), f"run {TOOL.name}"


def test_runs_follow_it(tool: ModuleType) -> None:
    schema = json.loads(tool.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for run in (make_run(), make_run(machine=SERVER, match=False, accuracy=None, queries=1)):
        data = json.loads(run.to_json())
        validator.validate(data)
        assert not validator.is_valid({**data, "surprise": 1})
        assert not validator.is_valid({**data, "schema_version": 2})


@settings(max_examples=20, deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    median_s=st.floats(1e-6, 100),
    queries=st.integers(1, 200),
    accuracy=st.none() | st.floats(0, 1),
    deadline_s=st.none() | st.floats(1e-6, 10),
    machine=st.sampled_from([PI, SERVER]),
)
def test_round_trip(**fields: Any) -> None:
    run = make_run(**fields)
    line = run.to_json()
    assert "\n" not in line
    assert Run.from_json(line) == run


def _damaged(**changes: Any) -> str:
    return json.dumps({**json.loads(make_run(queries=3).to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a run"),
        ('{"format": "edgelm-bundle"}', "not a run"),
        (_damaged(schema_version=2), "Update edgelm"),
        (_damaged(schema_version=True), "no edgelm ever wrote"),
        (_damaged(surprise=1), "schema"),
        (_damaged(results=None), "schema"),
        (_damaged(interrupted="no"), "schema"),
        (_damaged(samples={"latency_s": []}), "schema|samples"),
        (make_run(queries=2).to_json().replace('"started"', '"other"'), "schema"),
        (make_run(queries=2).to_json().replace('"p50_s":', '"p50_s":NaN,"x":'), "NaN"),
        (make_run(queries=2).to_json().replace('"p50_s":', '"p50_s":1e999,"x":'), "too large"),
    ],
)
def test_refuses_what_is_no_run(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Run.from_json(text)


@pytest.mark.parametrize(
    "changes", [{"latency_s": ()}, {"tokens": (1,)}, {"latency_s": (0.1, 0.0)}, {"latency_s": (1, -1)}]
)
def test_refuses_samples_that_contradict_each_other(changes: dict[str, Any]) -> None:
    run = replaced(make_run(queries=2), "samples", **changes)
    with pytest.raises(InputError, match="damaged"):
        Run.from_json(run.to_json())


def test_a_message_does_not_repeat_a_hundred_thousand_latencies() -> None:
    data = json.loads(make_run(queries=3).to_json())
    data["samples"]["latency_s"] = ["slow"] * 100_000
    with pytest.raises(InputError) as caught:
        Run.from_dict(data)
    assert len(str(caught.value)) < 400
