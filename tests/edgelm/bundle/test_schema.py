from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
from bundle_factory import make_classifier_bundle

TOOL = Path(__file__).parents[2] / "tools" / "make_manifest_schema.py"
VERSION_1 = Path(__file__).parents[2] / "data" / "version-1.edgelm"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_manifest_schema", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_schema_is_that_of_the_classes(tool: ModuleType) -> None:
    assert tool.SCHEMA.read_text(encoding="utf-8") == tool.make(), f"run {TOOL.name}"


def test_manifests_follow_it(tool: ModuleType, tmp_path: Path) -> None:
    schema = json.loads(tool.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for bundle in (make_classifier_bundle(tmp_path, fake_files=True), VERSION_1):
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        validator.validate(manifest)
        assert not validator.is_valid({**manifest, "surprise": 1})
        assert not validator.is_valid({**manifest, "schema_version": 5})
