"""What encoders and decoders have in common as TFLite: norms, activations, feed-forwards.

What was measured for each choice stands beside it (LiteRT 2.3, one AVX-512 core, int8 weights, widths 128 to 384).
"""

from __future__ import annotations

import numpy as np

from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.emit.tflite_weights import Affine, Store, after_norm, plain
from edgelm_converters.spec import Activation, FeedForward, Float32, Linear, Norm

__all__ = ["HIDDEN", "activated", "apply_norm", "feed_forward", "normalised"]

# Added to the score of a token that is not seen. exp() of a float32 is 0 below -104, so that its weight is exactly 0 while
# scores stay within ±10,000; finite, so that a row of padding alone gives numbers and not NaN; inside float16's range, in
# which a GPU computes.
HIDDEN = -30000.0


def feed_forward(graph: Graph, store: Store, block: FeedForward, x: Value, norm: Norm | None) -> Value:
    """Return the feed-forward of ``(n, D)``; with a norm, x is what `normalised` gave, and gamma and beta are folded in."""

    def affine(part: Affine) -> Affine:
        return part if norm is None else after_norm(part, norm)

    if block.gate is None:
        hidden = activated(graph, store, affine(plain(block.up)), x, block.activation)
    else:
        gate = activated(graph, store, affine(plain(block.gate)), x, block.activation)
        hidden = graph.multiply(gate, store.linear(graph, affine(plain(block.up)), x))
    if block.turn is not None:
        hidden = _turned(graph, store, block.turn, hidden)
    return store.linear(graph, plain(block.down), hidden)


def _turned(graph: Graph, store: Store, turn: Float32, x: Value) -> Value:
    """Multiply each run of b channels with ``(b, b)``: a float product, since b rows of b are too few to be quantised."""
    width = len(turn)
    runs = graph.reshape(x, (x.shape[0] * x.shape[1] // width, width))
    return graph.reshape(store.linear(graph, plain(Linear("turn", turn, None)), runs), x.shape)


def activated(graph: Graph, store: Store, affine: Affine, x: Value, activation: Activation) -> Value:
    """Return ``activation(affine(x))``."""
    if activation == "relu":
        return store.linear(graph, affine, x, fused="relu")
    x = store.linear(graph, affine, x)
    if activation in ("gelu", "gelu_tanh"):
        # XNNPACK has both; the decomposed tanh form takes 5-7 % more.
        return graph.gelu(x, approximate=activation == "gelu_tanh")
    if activation == "silu":
        return graph.multiply(x, graph.unary("LOGISTIC", x))
    if activation == "linear":
        return x
    return graph.unary("TANH" if activation == "tanh" else "LOGISTIC", x)


def apply_norm(graph: Graph, norm: Norm, x: Value) -> Value:
    """Return a whole norm over the last axis of x, of any rank."""
    shape = (*(1 for _ in x.shape[1:]), x.shape[-1])
    x = graph.multiply(normalised(graph, norm, x), graph.floats(norm.gamma.reshape(shape)))
    return x if norm.beta is None else graph.add(x, graph.floats(norm.beta.reshape(shape)))


def normalised(graph: Graph, norm: Norm, x: Value) -> Value:
    """Return the rows of x with variance 1 (and mean 0), before gamma and beta.

    The centred x is kept and squared, which is up to 2 % faster than SQUARED_DIFFERENCE; products with constant matrices in
    place of the means take 3-40 % more. A norm costs 1-2 % of a layer.
    """
    if norm.kind == "layer":
        x = graph.subtract(x, graph.reduce("MEAN", x, -1))
    variance = graph.reduce("MEAN", graph.multiply(x, x), -1)
    eps = graph.floats(np.full((1,) * len(x.shape), norm.eps))
    return graph.multiply(x, graph.unary("RSQRT", graph.add(variance, eps)))
