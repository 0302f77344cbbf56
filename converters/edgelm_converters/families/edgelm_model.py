"""Reads the models that edgelm itself writes: pruned, trimmed and distilled ones (`edgelm_converters.keras_model`)."""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import NotRecognised
from edgelm_converters.keras_model import read_keras_model
from edgelm_converters.spec import TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return the spec that the model was built of, with its weights as they are now.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used: the model takes what its spec takes.

    Raises:
        NotRecognised: edgelm did not write it.
    """
    del sequence_length
    spec = read_keras_model(model)
    if spec is None:
        raise NotRecognised("it is no model that edgelm made")
    return spec
