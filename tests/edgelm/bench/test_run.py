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

from edgelm.bench import GenerationRun, Run
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
    assert tool.GENERATION_SCHEMA.read_text(encoding="utf-8") == tool.make_generation(), f"run {TOOL.name}"


def test_runs_follow_it(tool: ModuleType) -> None:
    schema = json.loads(tool.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for run in (make_run(), make_run(machine=SERVER, match=False, accuracy=None, queries=1)):
        data = json.loads(run.to_json())
        validator.validate(data)
        assert not validator.is_valid({**data, "surprise": 1})
        assert not validator.is_valid({**data, "schema_version": 3})


@pytest.mark.parametrize(("kind", "name"), [(Run, "run"), (GenerationRun, "generation_run")])
def test_a_run_of_version_1_is_read_and_nothing_is_made_up(
    tool: ModuleType, kind: type[Run | GenerationRun], name: str
) -> None:
    """The files were written by the last edgelm with that version."""
    text = (Path(__file__).parent / "data" / f"{name}_version_1.json").read_text(encoding="utf-8")
    old = json.loads(text)
    run = kind.from_json(text)
    assert run.schema_version == 2
    assert run.session == run.id
    assert (run.energy.method, run.energy.per_inference_j) == ("not measured", None)
    assert run.energy.notes == (old["energy"]["reason"],)
    assert run.settings.order_seed is None
    assert json.loads(run.to_json())["samples"].items() >= old["samples"].items()
    assert kind.from_json(run.to_json()) == run
    schema = json.loads((tool.FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(run.to_json()))
    for damage in ({"stopped": None}, {"timeline": []}, {"settings": 1}, {"energy": {}}, {"surprise": 1}):
        with pytest.raises(InputError, match="schema"):
            kind.from_json(json.dumps({**old, **damage}))
    for lacking in ("energy", "settings", "bundle", "id"):
        with pytest.raises(InputError, match="schema"):
            kind.from_json(json.dumps({key: value for key, value in old.items() if key != lacking}))


def test_a_run_of_version_1_that_was_interrupted_says_so() -> None:
    old = json.loads((Path(__file__).parent / "data" / "run_version_1.json").read_text(encoding="utf-8"))
    assert Run.from_dict({**old, "interrupted": True}).stopped == "it was interrupted"
    with pytest.raises(InputError, match="true or false"):
        Run.from_dict({**old, "interrupted": "no"})


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
        (_damaged(schema_version=3), "Update edgelm"),
        (_damaged(schema_version=True), "no edgelm ever wrote"),
        (_damaged(surprise=1), "schema"),
        (_damaged(results=None), "schema"),
        (_damaged(stopped=False), "schema"),
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
