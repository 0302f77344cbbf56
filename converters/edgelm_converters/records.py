"""What a manifest says of the model that a bundle came from, and of the tools that made it."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgelm.bundle import CalibrationRecord, ModelRecord
from edgelm_converters.families import Recognition
from edgelm_converters.source import Source

__all__ = ["calibration_record", "model_record", "tool_versions"]

_TOOLS = (
    "edgelm",
    "keras",
    "keras-hub",
    "tensorflow",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "litert-lm-builder",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "numpy",
    "tokenizers",
)


def model_record(source: Source, recognition: Recognition) -> ModelRecord:
    """Return what the manifest says of the model."""
    spec = recognition.spec
    return ModelRecord(
        source=source.description,
        name=source.name,
        path="recognised" if spec else "traced",
        family=recognition.family if spec else None,
        reason=None if spec else recognition.reason,
        parameters=_count_parameters(source.model),
        architecture=spec.describe() if spec else {},
    )


def _count_parameters(model: Any) -> int:
    if hasattr(model, "count_params"):
        return int(model.count_params())
    return int(sum(np.prod(variable.shape) for variable in model.variables))


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that take part in a conversion, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def calibration_record(
    path: Path, *, samples: int, tokens: int | None, ranges: Literal["minmax", "percentile", "mse"] | None
) -> CalibrationRecord:
    """Return what the manifest says of a file that ranges, roundings or corrections were fitted on.

    Args:
        path: The file.
        samples: Those of it that were used.
        tokens: Of all of them; None where they have none.
        ranges: How ranges were chosen; None where none were.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return CalibrationRecord(path.name, samples, tokens, digest, ranges)
