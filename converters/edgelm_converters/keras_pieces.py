"""Keras's built-in layers as pieces of a spec: `Linear`, `Norm`, `Attention` and tables, from what the layer computes.

A layer that is used twice gives the same piece twice, with the same arrays: the artifact then holds them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.frameworks import import_keras
from edgelm_converters.keras_graph import Node
from edgelm_converters.spec import Attention, Float32, Linear, Norm, TokenHead

__all__ = ["ATTENTIONS", "NORMS", "Pieces"]

ATTENTIONS = ("MultiHeadAttention", "GroupedQueryAttention", "CachedMultiHeadAttention")
NORMS = ("LayerNormalization", "RMSNormalization")

# Names of the settings in the two classes of attention; older versions of Keras have neither.
_UNKNOWN_SETTINGS = {("_sliding_window", "sliding_window"): "a sliding window", ("_use_gate", "use_gate"): "a gate"}

_Piece = TypeVar("_Piece")


class Pieces:
    """Reads layers, and remembers what it read."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, str], Any] = {}

    def linear(self, node: Node) -> Linear:
        """Return a ``Dense`` layer, without its activation."""
        return self._once(node, lambda layer: _linear(layer, node.path))

    def table(self, node: Node) -> Float32:
        """Return the rows of an ``Embedding``, ``(rows, E)``."""
        return self._once(node, lambda layer: _array(layer.embeddings))

    def norm(self, node: Node) -> Norm:
        """Return a ``LayerNormalization`` or ``RMSNormalization`` over the last axis.

        Raises:
            NotRecognised: It goes over other axes, or is the "RMS scaling" of an older Keras.
        """
        return self._once(node, lambda layer: _norm(layer, node))

    def token_head(self, node: Node) -> TokenHead:
        """Return a ``Dense`` layer, or a ``ReversibleEmbedding`` that is reversed, as what scores tokens."""
        if node.kind == "Dense":
            linear = self.linear(node)
            return self._once(
                node, lambda _: TokenHead(node.path, np.ascontiguousarray(linear.kernel.T), linear.bias), "scores"
            )
        table = self.table(node)  # of the embedding itself, where it looks tokens up too
        return self._once(node, lambda layer: _reversed_head(layer, node.path, table), "scores")

    def attention(self, node: Node, *, causal: bool) -> Attention:
        """Return a ``MultiHeadAttention`` or ``GroupedQueryAttention``, or KerasHub's ``CachedMultiHeadAttention``.

        Args:
            node: Its call.
            causal: What its masks come to.

        Raises:
            NotRecognised: It has a sliding window, a gate, or values of another width than the keys.
        """
        piece: Attention = self._once(node, lambda layer: _attention(layer, node, causal=causal))
        if piece.causal != causal:
            raise NotRecognised(f"{node.describe()} is used twice, once with a causal mask and once without")
        return piece

    def _once(self, node: Node, read: Callable[[Any], _Piece], use: str = "") -> _Piece:
        layer = node.operation
        if (id(layer), use) not in self._read:
            for part in layer._flatten_layers():
                if part.quantization_mode is not None:
                    raise NotRecognised(
                        f"{node.describe()} was quantised by Keras ({part.quantization_mode}); "
                        "give the model from before model.quantize()"
                    )
            self._read[id(layer), use] = read(layer)
        piece: _Piece = self._read[id(layer), use]
        return piece


def _array(variable: Any) -> Float32:
    """Return a Keras variable or tensor as float32, whatever it is held in."""
    return np.ascontiguousarray(import_keras().ops.convert_to_numpy(variable), dtype=np.float32)


def _linear(layer: Any, path: str, shape: tuple[int, int] | None = None) -> Linear:
    """Return a layer with a kernel (LoRA is in it already), flattened to `shape` where it has heads."""
    kernel = _array(layer.kernel)
    bias = None if layer.bias is None else _array(layer.bias).reshape(-1)
    return Linear(path, kernel if shape is None else kernel.reshape(shape), bias)


def _reversed_head(layer: Any, path: str, table: Float32) -> TokenHead:
    """Return how a ``ReversibleEmbedding`` scores: with its own table, or one apart, ``(D, V)``."""
    if not layer.tie_weights:
        table = np.ascontiguousarray(_array(layer.reverse_embeddings).T)
    cap = getattr(layer, "logit_soft_cap", None)
    return TokenHead(path, table, soft_cap=None if cap is None else float(cap))


def _norm(layer: Any, node: Node) -> Norm:
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    rank = len(node.arguments["x" if "x" in node.arguments else "inputs"].shape)
    if [axis % rank for axis in axes] != [rank - 1]:
        raise NotRecognised(f"{node.describe()} normalises the axes {list(axes)}, and only the last one is known")
    eps = float(layer.epsilon)
    if node.kind == "RMSNormalization":
        return Norm("rms", _array(layer.scale), None, eps)
    if getattr(layer, "rms_scaling", False):
        raise NotRecognised(
            f"{node.describe()} has rms_scaling=True, which is no RMS normalisation: use RMSNormalization"
        )
    beta = None if layer.beta is None else _array(layer.beta)
    if layer.gamma is not None:
        return Norm("layer", _array(layer.gamma), beta, eps)
    width = node.arguments["inputs"].shape[-1]
    return Norm("layer", np.ones(width, np.float32), beta, eps)


def _attention(layer: Any, node: Node, *, causal: bool) -> Attention:
    for settings, words in _UNKNOWN_SETTINGS.items():
        if any(getattr(layer, setting, None) for setting in settings):
            raise NotRecognised(f"{node.describe()} has {words}, which a spec does not have")
    if getattr(layer, "_attention_axes", (1,)) != (1,):
        raise NotRecognised(f"{node.describe()} attends over the axes {layer._attention_axes}, and not over the tokens")
    query, key, value, output = layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense
    width, heads, head_dim = (int(extent) for extent in query.kernel.shape)
    kv_heads, value_dim = (int(extent) for extent in value.kernel.shape[1:])
    if value_dim != head_dim:
        raise NotRecognised(f"{node.describe()} has values of width {value_dim} and keys of width {head_dim}")
    if {int(dense.kernel.shape[0]) for dense in (key, value)} != {width}:
        raise NotRecognised(f"{node.describe()} has queries of width {width}, and attends to another width")
    if tuple(output.kernel.shape) != (heads, head_dim, width):
        raise NotRecognised(f"{node.describe()} has an output_shape other than the width {width} of its input")
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query=_linear(query, f"{node.path}/query", (width, -1)),
        key=_linear(key, f"{node.path}/key", (width, -1)),
        value=_linear(value, f"{node.path}/value", (width, -1)),
        output=_linear(output, f"{node.path}/attention_output", (-1, width)),
        scale=1.0 / math.sqrt(head_dim),
        causal=causal,
    )
