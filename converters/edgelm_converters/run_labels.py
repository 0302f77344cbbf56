"""What a model's answer means, and whether the labels that were given fit it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgelm.bundle.manifest import Role, Task
from edgelm.errors import InputError
from edgelm_converters.data import read_labels
from edgelm_converters.parity import Expected
from edgelm_converters.samples import SampleSet
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec

__all__ = ["check_labels", "label_names", "output_role", "task_of"]


def label_names(labels: str | Path | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of the classes, from a file or as they are given."""
    if labels is None:
        return None
    return read_labels(Path(labels)) if isinstance(labels, (str, Path)) else tuple(labels)


def output_role(
    spec: TransformerSpec | None, source: Source, expected: Expected, names: tuple[str, ...] | None
) -> Role:
    """Say what the first output means: as the spec has it, or from a traced model's last activation and its values."""
    if spec is not None:
        # A row for each token (tagging) is not one choice: an application reads it as it is.
        return "raw" if spec.head.pooling == "none" else spec.head.output
    answers = [next(iter(outputs.values())) for outputs in expected.outputs if outputs][:64]
    if any(answer.ndim != 1 or answer.shape != answers[0].shape for answer in answers):
        return "raw"  # a row for each token
    values = np.stack(answers)
    if values.shape[1] > 1 and (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        return "probabilities"
    layers = getattr(source.model, "layers", None) or [None]
    if getattr(getattr(layers[-1], "activation", None), "__name__", "") == "sigmoid":
        return "sigmoid"
    return "logits" if names is not None else "raw"


def check_labels(names: tuple[str, ...] | None, sets: Sequence[SampleSet], expected: Expected, role: Role) -> None:
    """Hold the labels, the data's and the names', against the model's classes.

    Raises:
        InputError: They do not fit, or the model has none.
    """
    highest = max(
        (sample.label for samples in sets for sample in samples.samples if sample.label is not None), default=None
    )
    if names is None and highest is None:
        return
    if role not in ("logits", "probabilities", "sigmoid"):
        raise InputError(f"Labels were given, but the model's output is no choice between classes (it is '{role}').")
    outputs = int(np.size(next(iter(expected.outputs[0].values()))))
    classes = 2 if outputs == 1 else outputs
    if names is not None and len(names) != classes:
        raise InputError(f"There are {len(names)} labels, and the model has {classes} classes: give one name for each.")
    if highest is not None and highest >= classes:
        raise InputError(f"The data hold the label {highest}, and the model has the classes 0 to {classes - 1}.")


def task_of(role: Role) -> Task:
    """Return what a session does with a model whose output is that."""
    if role in ("logits", "probabilities", "sigmoid"):
        return "classify"
    return "embed" if role == "embedding" else "raw"
