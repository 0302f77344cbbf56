"""What a mask in a captured graph says: which input it comes from, and over which axes it lies.

A padding mask is ``ids != 0`` or an input of its own; until it reaches an attention layer it is cast, given new axes, or
combined with itself. `trace_mask` follows it back through exactly these operations and refuses every other one. What the
masks of one attention come to is in `edgelm_converters.keras_attention_masks`.

Axes of a mask, in order: ``b`` batch, ``s`` tokens, ``1`` an axis to broadcast over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.keras_graph import Constant, Tensor

__all__ = ["CONJUNCTIONS", "Mask", "ids_source", "trace_mask"]

CONJUNCTIONS = ("LogicalAnd", "Multiply", "Minimum")  # what combines two masks

_EXACT_IDS = ("int32", "int64", "uint32", "uint64", "float32", "float64")  # types that hold every id of a vocabulary


@dataclass(frozen=True)
class Mask:
    """A mask that is 1 for real tokens.

    Attributes:
        source: Name of the input it is made of.
        compared: Whether it is ``input != 0``, and not the input itself.
        axes: Such as ``("b", "1", "s")``.
        inverted: Whether it is 1 for padding instead.
    """

    source: str
    compared: bool
    axes: tuple[str, ...]
    inverted: bool = False


def trace_mask(value: Any) -> Mask:
    """Return what a mask says.

    Raises:
        NotRecognised: It is made by an operation that is not known here; the message names it.
    """
    if isinstance(value, Constant):
        raise NotRecognised("a constant mask in this place is not known (a causal one is, as an attention's mask)")
    node = value.node
    step = _STEPS.get(node.kind)
    if step is None:
        raise NotRecognised(f"a mask that goes through {node.describe()} is not known")
    return step(value)


def ids_source(value: Any) -> str | None:
    """Return the name of the input that holds these ids; None where they are computed.

    Raises:
        NotRecognised: They were cast to a type that does not hold every id.
    """
    narrow: str | None = None
    while isinstance(value, Tensor) and value.node.kind in ("Cast", "ConvertToTensor"):
        narrow = narrow if value.dtype in _EXACT_IDS else value.dtype
        value = value.node.arguments["x"]
    if not isinstance(value, Tensor) or value.node.kind != "Input" or len(value.shape) != 2:
        return None
    source = str(value.node.operation.name)
    if narrow is not None:
        raise NotRecognised(
            f"the ids '{source}' are cast to {narrow}, which does not hold every id: give the Input dtype='int32'"
        )
    return source


def _input(value: Tensor) -> Mask:
    if len(value.shape) != 2:
        raise NotRecognised(f"the mask {value.node.describe()} has the shape {value.shape}, not (batch, tokens)")
    return Mask(str(value.node.operation.name), compared=value.dtype == "bool", axes=("b", "s"))


def _comparison(*, inverted: bool) -> Callable[[Tensor], Mask]:
    def step(value: Tensor) -> Mask:
        left, right = value.node.arguments["x1"], value.node.arguments["x2"]
        right = right.value if isinstance(right, Constant) else right
        source = ids_source(left)
        if source is None or isinstance(right, (Tensor, tuple)) or np.ndim(right) != 0 or right != 0:
            raise NotRecognised(f"a mask is known as ids != 0, and {value.node.describe()} compares something else")
        return Mask(source, compared=True, axes=("b", "s"), inverted=inverted)

    return step


def _cast(value: Tensor) -> Mask:
    mask = trace_mask(value.node.arguments["x"])
    return replace(mask, compared=True) if value.dtype == "bool" else mask


def _negation(value: Tensor) -> Mask:
    mask = trace_mask(value.node.arguments["x"])
    return replace(mask, inverted=not mask.inverted, compared=True)


def _new_axis(value: Tensor) -> Mask:
    mask = trace_mask(value.node.arguments["x"])
    axis = value.node.operation.axis
    if not isinstance(axis, int):
        raise NotRecognised(f"{value.node.describe()} gives a mask several axes at once")
    axes = list(mask.axes)
    axes.insert(axis % (len(axes) + 1), "1")
    return replace(mask, axes=tuple(axes))


def _index(value: Tensor) -> Mask:
    """``mask[:, None, :]``: new axes only, nothing is picked out."""
    mask = trace_mask(value.node.arguments["x"])
    key = value.node.arguments["key"]
    left, axes = list(mask.axes), list[str]()
    for entry in key if isinstance(key, tuple) else (key,):
        if entry is None:
            axes.append("1")
        elif isinstance(entry, slice) and entry == slice(None) and left:
            axes.append(left.pop(0))
        else:
            raise NotRecognised(f"{value.node.describe()} picks a part of a mask")
    return replace(mask, axes=(*axes, *left))


def _reshape(value: Tensor) -> Mask:
    """Give a mask axes of extent 1. The order of elements stays, so the other axes are known by their extents."""
    tensor = value.node.arguments["x"]
    mask = trace_mask(tensor)
    if [extent for extent in value.shape if extent != 1] != list(tensor.shape) or mask.axes != ("b", "s"):
        raise NotRecognised(f"{value.node.describe()} does more to a mask than to give it axes of extent 1")
    kept = iter(mask.axes)
    return replace(mask, axes=tuple("1" if extent == 1 else next(kept) for extent in value.shape))


def _broadcast(value: Tensor) -> Mask:
    """Take a larger extent for an axis of extent 1: the mask says the same."""
    mask = trace_mask(value.node.arguments["x"])
    if len(value.shape) != len(mask.axes):
        raise NotRecognised(f"{value.node.describe()} gives a mask new axes; use expand_dims")
    return mask


def _conjunction(value: Tensor) -> Mask:
    """Combine a mask with itself: ``mask[:, :, None] & mask[:, None, :]`` lies over both."""
    left, right = (trace_mask(value.node.arguments[name]) for name in ("x1", "x2"))
    if (
        (left.source, left.inverted) != (right.source, right.inverted)
        or left.inverted
        or len(left.axes) != len(right.axes)
    ):
        raise NotRecognised(f"{value.node.describe()} combines different masks")
    axes = tuple(a if b == "1" else b for a, b in zip(left.axes, right.axes, strict=True))
    return replace(left, axes=axes, compared=left.compared and right.compared)


def _disjunction(value: Tensor) -> Mask:
    """Join a mask with itself, as Keras does for the inputs of an Add."""
    left, right = (trace_mask(value.node.arguments[name]) for name in ("x1", "x2"))
    if left != right:
        raise NotRecognised(f"{value.node.describe()} joins different masks")
    return left


_STEPS: dict[str, Callable[[Tensor], Mask]] = {
    "Input": _input,
    "NotEqual": _comparison(inverted=False),
    "Greater": _comparison(inverted=False),  # ids are not negative
    "Equal": _comparison(inverted=True),
    "LogicalNot": _negation,
    "Cast": _cast,
    "ConvertToTensor": _cast,
    "ExpandDims": _new_axis,
    "GetItem": _index,
    "Reshape": _reshape,
    "BroadcastTo": _broadcast,
    **dict.fromkeys(CONJUNCTIONS, _conjunction),
    "LogicalOr": _disjunction,
}
