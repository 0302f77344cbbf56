"""Make ``edgelm/bench/run.schema.json`` and ``generation_run.schema.json`` from the dataclasses of a run.

    python tests/tools/make_run_schema.py

A test makes them again and compares. A line of a log has the place of its samples instead of them, so both are allowed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from edgelm.bench import FORMAT, SCHEMA_VERSION, GenerationRun, Run
from edgelm.bench.findings import StoredSamples
from edgelm.bench.generation_run import GENERATION_FORMAT, GENERATION_SCHEMA_VERSION

FOLDER = Path(__file__).parents[2] / "edgelm" / "bench"
SCHEMA = FOLDER / "run.schema.json"
GENERATION_SCHEMA = FOLDER / "generation_run.schema.json"

_MODULES = [
    importlib.import_module(name)
    for name in (
        "edgelm.bench.run",
        "edgelm.bench.generation_run",
        "edgelm.bench.context",
        "edgelm.bench.findings",
        "edgelm.meters.record",
        "edgelm_runtimes.machine",
        "edgelm_runtimes.program",
        "edgelm.bundle",
    )
]


def make() -> str:
    """Return the schema of a run as it stands in the file."""
    return _schema(Run, FORMAT, SCHEMA_VERSION, "a run of edgelm benchmark")


def make_generation() -> str:
    """Return the schema of a language model's run as it stands in the file."""
    title = "a run of edgelm benchmark with a language model"
    return _schema(GenerationRun, GENERATION_FORMAT, GENERATION_SCHEMA_VERSION, title)


def _schema(described: type, name: str, version: int, title: str) -> str:
    schema = TypeAdapter(described).json_schema()
    stored = TypeAdapter(StoredSamples).json_schema()
    schema["$defs"]["StoredSamples"] = stored
    samples = schema["properties"]["samples"]
    schema["properties"]["samples"] = {"anyOf": [samples, {"$ref": "#/$defs/StoredSamples"}]}
    _describe(schema, described)
    for each, entry in schema["$defs"].items():
        _describe(entry, next(getattr(module, each) for module in _MODULES if hasattr(module, each)))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = title
    schema["properties"]["format"]["const"] = name
    schema["properties"]["schema_version"] |= {"minimum": version, "maximum": version}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _describe(entry: dict[str, Any], described: type) -> None:
    """Put a class's docstring into its schema, and allow no further fields."""
    text = inspect.getdoc(described) or ""
    entry["description"] = text.split("\n")[0]
    entry["additionalProperties"] = False
    for name, words in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", text, re.MULTILINE):
        entry["properties"][name]["description"] = re.sub(r"\s+", " ", words)


if __name__ == "__main__":
    SCHEMA.write_text(make(), encoding="utf-8")
    GENERATION_SCHEMA.write_text(make_generation(), encoding="utf-8")
