"""Which positions an attention layer of a captured graph leaves out: what its masks, each traced to an input, come to.

A causal mask depends on no input, so it is a constant at the captured length, whatever code made it. At that length it is
compared with the lower triangle, element by element; it may be combined with a padding mask.

Axes of a mask are named as in `edgelm_converters.keras_masks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.keras_graph import Constant, Node, Tensor
from edgelm_converters.keras_masks import CONJUNCTIONS, Mask, trace_mask

__all__ = ["AttentionMask", "CrossMask", "OtherConstantMask", "trace_attention_mask", "trace_cross_mask"]

_SCORE_AXES = (("b", "1", "s"), ("b", "s", "s"), ("b", "1", "1", "s"), ("b", "1", "s", "s"))
# Of cross-attention's scores, which lie over the target's tokens and then the source's.
_KEY_AXES = (("b", "1", "s"), ("b", "1", "1", "s"))
_QUERY_AXES = (("b", "s", "1"), ("b", "1", "s", "1"))


class OtherConstantMask(NotRecognised):
    """A constant mask that is not the causal one, such as that of a window: it is none at a shorter length, either."""


@dataclass(frozen=True)
class AttentionMask:
    """Which positions an attention layer leaves out.

    Attributes:
        mask: The padding that is no key; None where every position is one.
        queries: Whether the rows of padding are masked as a whole, too. Keras does that with a mask that it propagates
            itself; what such a row holds then has no meaning.
        causal: Whether a position sees only itself and those before it.
    """

    mask: Mask | None
    queries: bool
    causal: bool = False


@dataclass(frozen=True)
class CrossMask:
    """Which positions a cross-attention leaves out.

    Attributes:
        keys: The source's padding; None where every position is a key.
        queries: Names of the inputs whose padding is masked as whole rows. What such a row holds has no meaning.
    """

    keys: Mask | None
    queries: frozenset[str]


def trace_attention_mask(node: Node) -> AttentionMask:
    """Return what the masks of an attention node come to.

    Raises:
        OtherConstantMask: One is a constant at this length, and not the causal one.
        NotRecognised: They are of different inputs, or not made of one by known operations.
    """
    keys: list[Mask] = []
    queries: list[Mask] = []
    for name in ("query_mask", "value_mask", "key_mask"):
        mask = _optional(node, name)
        if mask is not None:
            _expect_axes(node, name, mask, (("b", "s"),))
            (queries if name == "query_mask" else keys).append(mask)
    paddings, causal = _without_causal(node)
    causal = causal or bool(node.arguments.get("use_causal_mask"))
    for mask in paddings:
        _expect_axes(node, "attention_mask", mask, _SCORE_AXES)
        keys.append(mask)
        if mask.axes.count("s") == 2:
            queries.append(mask)
    found = [*keys, *queries]
    if len({mask.source for mask in found}) > 1:
        raise NotRecognised(f"the masks of {node.describe()} come from different inputs")
    if queries and not keys:
        raise NotRecognised(f"{node.describe()} masks its queries and not its keys")
    if not found:
        return AttentionMask(None, queries=False, causal=causal)
    compared = all(mask.compared for mask in found)
    return AttentionMask(Mask(found[0].source, compared, ("b", "s")), bool(queries), causal)


def trace_cross_mask(node: Node) -> CrossMask:
    """Return what the masks of a cross-attention node come to.

    Raises:
        NotRecognised: One is causal or constant, lies over both axes at once, or the keys' masks are of different inputs.
    """
    keys: list[Mask] = []
    queries: set[str] = set()
    for name in ("query_mask", "value_mask", "key_mask"):
        mask = _optional(node, name)
        if mask is None:
            continue
        _expect_axes(node, name, mask, (("b", "s"),))
        if name == "query_mask":
            queries.add(mask.source)
        else:
            keys.append(mask)
    given = node.arguments.get("attention_mask")
    factors = [] if given is None else _factors(given)
    if node.arguments.get("use_causal_mask") or any(isinstance(factor, Constant) for factor in factors):
        raise NotRecognised(f"{node.describe()} attends to an encoder, through a mask that is causal, or constant")
    for factor in factors:
        mask = _padding(node, "attention_mask", factor)
        _expect_axes(node, "attention_mask", mask, (*_KEY_AXES, *_QUERY_AXES))
        if mask.axes in _KEY_AXES:
            keys.append(mask)
        else:
            queries.add(mask.source)
    if len({mask.source for mask in keys}) > 1:
        raise NotRecognised(f"the masks of the keys of {node.describe()} come from different inputs")
    found = Mask(keys[0].source, all(mask.compared for mask in keys), ("b", "s")) if keys else None
    return CrossMask(found, frozenset(queries))


def _without_causal(node: Node) -> tuple[list[Mask], bool]:
    """Return the padding masks that an attention mask is made of, and whether a causal one is combined with them."""
    value = node.arguments.get("attention_mask")
    if value is None:
        return [], False
    factors = _factors(value)
    constants = [factor for factor in factors if isinstance(factor, Constant)]
    if not constants:
        return [_padding(node, "attention_mask", value)], False  # as a whole: a mask may be combined with itself
    if not all(_is_causal(constant, int(node.arguments["query"].shape[1])) for constant in constants):
        raise OtherConstantMask(
            f"the attention_mask of {node.describe()} is a constant other than the causal one (1 on and below the diagonal)"
        )
    return [_padding(node, "attention_mask", factor) for factor in factors if not isinstance(factor, Constant)], True


def _factors(value: Any) -> list[Any]:
    """Return what is combined into a mask, through casts."""
    if isinstance(value, Tensor) and value.node.kind in ("Cast", "ConvertToTensor"):
        inner = _factors(value.node.arguments["x"])
        return inner if len(inner) > 1 else [value]
    if isinstance(value, Tensor) and value.node.kind in CONJUNCTIONS:
        return _factors(value.node.arguments["x1"]) + _factors(value.node.arguments["x2"])
    return [value]


def _is_causal(constant: Constant, length: int) -> bool:
    """Whether a mask over ``(…, S, S)`` is 1 on and below the diagonal and 0 above, for every text and head."""
    value = constant.value
    if value.shape[-2:] != (length, length):
        return False
    return bool((value == np.tri(length, dtype=np.bool_)).all())


def _optional(node: Node, name: str) -> Mask | None:
    value = node.arguments.get(name)
    return None if value is None else _padding(node, name, value)


def _padding(node: Node, name: str, value: Any) -> Mask:
    mask = trace_mask(value)
    if mask.inverted:
        raise NotRecognised(f"the {name} of {node.describe()} is 1 for padding, and 0 for tokens")
    return mask


def _expect_axes(node: Node, name: str, mask: Mask, known: tuple[tuple[str, ...], ...]) -> None:
    if mask.axes not in known:
        raise NotRecognised(
            f"the {name} of {node.describe()} lies over the axes {'×'.join(mask.axes)}, not {'×'.join(known[0])}"
        )
