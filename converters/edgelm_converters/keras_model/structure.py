"""A spec taken apart: what it looks like, as plain data, and its arrays; and put together again, of arrays or of variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelError
from edgelm_converters import spec as pieces
from edgelm_converters.spec import FeedForward, Linear, Rotary, TokenHead, TransformerSpec

__all__ = ["flatten", "frozen_arrays", "unflatten"]

Structure = dict[str, Any]

_ARRAY, _PIECE = "array", "piece"


def flatten(spec: TransformerSpec) -> tuple[Structure, list[NDArray[np.float32]]]:
    """Return a spec as plain data, each array replaced by its number, and the arrays; what is shared has one number.

    Raises:
        ModelError: The spec was prepared for few bits.
    """
    numbers: dict[int, int] = {}
    arrays: list[NDArray[np.float32]] = []

    def take(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if id(value) not in numbers:
                numbers[id(value)] = len(arrays)
                arrays.append(value)
            return {_ARRAY: numbers[id(value)]}
        if isinstance(value, tuple):
            return [take(item) for item in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _check_plain(value)
            named = {field.name: take(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {_PIECE: type(value).__name__, **named}
        return value

    return take(spec), arrays


def _check_plain(piece: object) -> None:
    prepared = (
        (isinstance(piece, Linear) and piece.grid is not None)
        or (isinstance(piece, FeedForward) and piece.turn is not None)
        or (isinstance(piece, TokenHead) and piece.mixing is not None)
    )
    if prepared:
        raise ModelError(
            "The model's weights were prepared for few bits (rotated or rounded), and what is trained or saved is the model "
            "before: build the Keras model of the spec that was read."
        )


def unflatten(structure: Structure, arrays: Sequence[Any]) -> TransformerSpec:
    """Return a spec again, of arrays or of anything that stands for them."""

    def put(value: Any) -> Any:
        if isinstance(value, dict) and _ARRAY in value:
            return arrays[value[_ARRAY]]
        if isinstance(value, dict) and _PIECE in value:
            kind = getattr(pieces, value[_PIECE])
            return kind(**{name: put(item) for name, item in value.items() if name != _PIECE})
        return tuple(put(item) for item in value) if isinstance(value, (list, tuple)) else value

    spec: TransformerSpec = put(structure)
    return spec


def frozen_arrays(structure: Structure) -> frozenset[int]:
    """Return the numbers of arrays that are no weights: the frequencies of rotary embeddings."""
    found = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if value.get(_PIECE) == Rotary.__name__:
                found.add(value["frequencies"][_ARRAY])
            for item in value.values():
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)

    walk(structure)
    return frozenset(found)
