"""Make ``edgelm/bundle/manifest.schema.json`` from the dataclasses of the manifest.

    python tests/tools/make_manifest_schema.py

A test makes it again and compares.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from edgelm.bundle import FORMAT, SCHEMA_VERSION, Manifest, manifest

SCHEMA = Path(__file__).parents[2] / "edgelm" / "bundle" / "manifest.schema.json"


def make() -> str:
    """Return the schema as it stands in the file."""
    schema = TypeAdapter(Manifest).json_schema()
    _describe(schema, Manifest)
    for name, entry in schema["$defs"].items():
        _describe(entry, getattr(manifest, name))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "manifest.json of an edgelm bundle"
    schema["properties"]["format"]["const"] = FORMAT
    schema["properties"]["schema_version"] |= {"minimum": 1, "maximum": SCHEMA_VERSION}
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
