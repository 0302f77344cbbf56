"""The blocks of a Transformer as ONNX nodes, in the form that ONNX Runtime's CPU provider runs fastest.

Dimensions: ``B`` inputs, ``n`` tokens, ``D`` width, ``H`` heads, ``K`` key/value heads, ``A`` width of a head.

The sequence comes first: activations are rows ``(n*B, D)``, token by token and within a token input by input. Then queries,
keys and values are ``(n, B*H, A)`` by a mere reshape, and ``FusedMatMul`` reads them with its strided batches: no
transpose but that of the mixed values. Measured with ONNX Runtime 1.32 on two Zen 4 cores with AVX-512 VNNI, best ms of one
thread, int8, 2×128 (4 heads, 128 tokens) and 4×256 (128 tokens):

==========================================================  =====  =====
sequence first, FusedMatMul                                 0.421  3.067
batch first, Transpose and MatMul                           0.445  3.185
batch first, com.microsoft.MultiHeadAttention               0.445  3.195
==========================================================  =====  =====

com.microsoft.Attention, EmbedLayerNormalization, SkipLayerNormalization and BiasGelu together: 8.58 ms in float32 where
this form takes 7.72; the standard Attention of opset 23 takes as long, and ONNX Runtime 1.22 lacks it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_relative import bias_by_distance
from edgelm_converters.emit.onnx_weights import BOOL, Weights
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Activation, Attention, FeedForward, Layer, Linear, Norm, TransformerSpec

__all__ = [
    "Flow",
    "Products",
    "activate",
    "embed",
    "encode_layer",
    "feed_forward",
    "normalise",
    "shared_kernels",
    "start",
]

# Added to the score of a token that is not seen. exp underflows to 0 beside any score, and where no token at all is seen
# the scores vanish in its rounding (64): a mean over all tokens, as Keras has it.
_UNSEEN = -1e9

_ACTIVATIONS: dict[Activation, str] = {"relu": "Relu", "gelu": "Gelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


class Products(Protocol):
    """A graph, and how weights enter it."""

    @property
    def graph(self) -> Graph:
        """The graph under construction."""
        ...

    def linear(self, x: str, linear: Linear) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x` ``(N, in)``."""
        ...


@dataclass(frozen=True)
class Flow:
    """What every block needs.

    Attributes:
        weights: The graph and the recipe.
        tokens: Token ids, int32 ``(n, B)``.
        segments: Segment ids, int32 ``(n, B)``, where the model has them.
        length: ``n``, int64 ``(1,)``.
        batch: ``B``, int64 ``(1,)``.
        real: Which tokens are no padding, bool ``(B, n)``; None where every token counts.
    """

    weights: Weights
    tokens: str
    segments: str | None
    length: str
    batch: str
    real: str | None

    @property
    def graph(self) -> Graph:
        """The graph under construction."""
        return self.weights.graph

    def split(self, rows: str, *sizes: int) -> str:
        """Return rows ``(n*B, …)`` as ``(n, *sizes)``; one size may be -1."""
        graph = self.graph
        shape = graph.node("Concat", self.length, graph.constant([*sizes]), axis=0)
        return graph.node("Reshape", rows, shape)

    def first_rows(self, rows: str) -> str:
        """Return the rows ``(B, D)`` of each input's first token."""
        zero = self.graph.constant([0])
        return self.graph.node("Slice", rows, zero, self.batch, zero)


def start(spec: TransformerSpec, graph: Graph, recipe: Recipe) -> Flow:
    """Return the flow of a model whose inputs are int32 ``(B, n)``."""
    tokens = graph.node("Transpose", spec.token_input, perm=(1, 0))
    segments = None
    if spec.embeddings.segment is not None and spec.segment_input is not None:
        segments = graph.node("Transpose", spec.segment_input, perm=(1, 0))
    fixed = spec.fixed_length
    real = None
    if spec.mask != "none":
        counted = spec.mask_input if spec.mask == "input" and spec.mask_input is not None else spec.token_input
        real = graph.node("Cast", counted, to=BOOL)
    return Flow(
        weights=Weights(graph, recipe, shared_kernels(spec)),
        tokens=tokens,
        segments=segments,
        length=graph.constant([fixed]) if fixed is not None else graph.node("Shape", tokens, start=0, end=1),
        batch=graph.node("Shape", tokens, start=1, end=2),
        real=real,
    )


def shared_kernels(spec: TransformerSpec) -> frozenset[int]:
    """Return the ids of the kernels that more than one layer uses, as ALBERT's layers do."""
    kernels: Counter[int] = Counter()
    for layer in spec.encoder.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        linears = (
            attention.query,
            attention.key,
            attention.value,
            attention.output,
            feed_forward.up,
            feed_forward.down,
        )
        kernels.update(id(linear.kernel) for linear in linears)
        if feed_forward.gate is not None:
            kernels[id(feed_forward.gate.kernel)] += 1
    return frozenset(kernel for kernel, uses in kernels.items() if uses > 1)


def embed(flow: Flow, spec: TransformerSpec) -> str:
    """Return the embedded tokens as rows ``(n*B, D)``."""
    graph, weights, parts = flow.graph, flow.weights, spec.embeddings
    x = weights.rows(
        parts.token,
        "embeddings/token",
        lambda table: graph.node("Gather", table, flow.tokens),
        factor=parts.token_scale,
        least_bits=parts.least_bits,
    )
    if parts.position is not None:
        # The whole table becomes float32 (P, 1, E) when ONNX Runtime loads the file: it is short, and only Slice is left to
        # run. At 16 tokens in a 2×128 int8 model that is worth 2 %.
        table = weights.rows(parts.position, "embeddings/position", lambda whole: whole, least_bits=parts.least_bits)
        zero, one = graph.constant([0]), graph.constant([1])
        x = graph.node("Add", x, graph.node("Slice", graph.node("Unsqueeze", table, one), zero, flow.length, zero))
    if parts.segment is not None and flow.segments is not None:
        segments = flow.segments
        x = graph.node(
            "Add",
            x,
            weights.rows(
                parts.segment,
                "embeddings/segment",
                lambda table: graph.node("Gather", table, segments),
                least_bits=parts.least_bits,
            ),
        )
    x = graph.node("Reshape", x, graph.constant([-1, parts.token.shape[1]]))
    if parts.norm is not None:
        x = normalise(graph, parts.norm, x, "embeddings/norm")
    if parts.projection is not None:
        x = weights.linear(x, parts.projection)
    return x


def encode_layer(flow: Flow, layer: Layer, x: str, *, first_only: bool) -> str:
    """Return a layer's output for rows `x`; with `first_only` the rows of each input's first token alone.

    With "first" pooling the last layer needs no other row: queries, output and feed-forward of the rest are dead. At 128
    tokens it takes the 2×128 model from 1.28 to 0.76 ms, with int8 from 0.69 to 0.42.
    """
    graph, weights = flow.graph, flow.weights
    name = layer.attention.query.name
    if layer.norm_placement == "pre":
        seen = normalise(graph, layer.attention_norm, x, f"{name}/norm")
        x = flow.first_rows(x) if first_only else x
        x = graph.node("Add", x, _attend(flow, layer.attention, seen, first_only=first_only))
        return graph.node(
            "Add",
            x,
            feed_forward(weights, layer.feed_forward, normalise(graph, layer.feed_forward_norm, x, f"{name}/ff_norm")),
        )
    mixed = _attend(flow, layer.attention, x, first_only=first_only)
    x = flow.first_rows(x) if first_only else x
    x = normalise(graph, layer.attention_norm, graph.node("Add", x, mixed), f"{name}/norm")
    x = graph.node("Add", x, feed_forward(weights, layer.feed_forward, x))
    return normalise(graph, layer.feed_forward_norm, x, f"{name}/ff_norm")


def normalise(graph: Graph, norm: Norm, x: str, name: str) -> str:
    """Return `x` normalised over its last axis."""
    gamma = graph.tensor(norm.gamma, f"{name}/gamma")
    beta = () if norm.beta is None else (graph.tensor(norm.beta, f"{name}/beta"),)
    if norm.kind == "layer":
        return graph.node("LayerNormalization", x, gamma, *beta, axis=-1, epsilon=norm.eps)
    # ONNX Runtime merges exactly this chain into one SimplifiedLayerNormalization.
    square = graph.node("Pow", x, graph.constant(2.0))
    mean = graph.node("ReduceMean", square, graph.constant([-1]), keepdims=1)
    root = graph.node("Sqrt", graph.node("Add", mean, graph.constant(norm.eps)))
    y = graph.node("Mul", graph.node("Div", x, root), gamma)
    return graph.node("Add", y, *beta) if beta else y


def activate(graph: Graph, activation: Activation, x: str) -> str:
    """Return the activation of `x`."""
    if activation == "linear":
        return x
    if activation == "gelu_tanh":
        return graph.node("FastGelu", x, contrib=True)  # 79 µs for 128×1024 values; the standard Gelu takes 104
    if activation == "silu":
        return graph.node("QuickGelu", x, contrib=True, alpha=1.0)  # x * sigmoid(x) in one pass
    return graph.node(_ACTIVATIONS[activation], x)


def _attend(flow: Flow, attention: Attention, x: str, *, first_only: bool) -> str:
    graph, weights = flow.graph, flow.weights
    A = attention.head_dim
    asking = flow.first_rows(x) if first_only else x
    query = weights.linear(asking, attention.query)
    query = graph.node("Reshape", query, graph.constant([1, -1, A])) if first_only else flow.split(query, -1, A)
    # A key's bias adds the same to all scores of a query, which softmax ignores.
    key = _repeat(flow, attention, weights.product(x, attention.key, None))
    value = _repeat(flow, attention, weights.product(x, attention.value, None))

    scores = graph.node(
        "FusedMatMul", query, key, contrib=True, alpha=attention.scale, transB=1, transBatchA=1, transBatchB=1
    )
    added = _added(flow, attention)
    if added is not None:
        scores = graph.node("Add", scores, added)
    mixed = graph.node("FusedMatMul", graph.node("Softmax", scores, axis=-1), value, contrib=True, transBatchB=1)
    if not first_only:  # (B*H, 1, A) is in order already
        mixed = graph.node("Transpose", mixed, perm=(1, 0, 2))
    mixed = graph.node("Reshape", mixed, graph.constant([-1, attention.heads * A]))
    return weights.product(mixed, attention.output, _output_bias(graph, attention))


def _repeat(flow: Flow, attention: Attention, x: str) -> str:
    """Return keys or values ``(n*B, K*A)`` as ``(n, B*H, A)``, each as often as queries share it."""
    graph, A = flow.graph, attention.head_dim
    times = attention.heads // attention.kv_heads
    if times == 1:
        return flow.split(x, -1, A)
    repeated = graph.node("Expand", flow.split(x, -1, 1, A), graph.constant([1, 1, times, 1]))
    return flow.split(repeated, -1, A)


def _added(flow: Flow, attention: Attention) -> str | None:
    """Return what is added to scores ``(B*H, n, n)``: what hides tokens, and the bias of their distance. None for nothing."""
    graph, hidden = flow.graph, _hidden(flow, attention)
    if attention.relative is None:
        return hidden
    zero, one = (graph.constant(np.array(value)) for value in (0, 1))
    places = graph.node("Range", zero, graph.node("Squeeze", flow.length), one)
    shape = graph.node("Concat", flow.batch, graph.constant([attention.heads, 1, 1]), axis=0)
    bias = graph.node("Expand", bias_by_distance(graph, attention.relative, places, places), shape)  # (B, H, n, n)
    bias = graph.node("Reshape", bias, graph.node("Concat", graph.constant([-1]), flow.length, flow.length, axis=0))
    return bias if hidden is None else graph.node("Add", hidden, bias)


def _hidden(flow: Flow, attention: Attention) -> str | None:
    """Return what hides tokens when it is added to scores ``(B*H, n, n)``, or None where all are seen.

    Built from a few hundred values once a graph; adding it is 1 % of a 4×256 model's time, 3 % of a 2×128 one's.
    """
    graph, real = flow.graph, flow.real
    if real is None and not attention.causal:
        return None
    unseen = graph.constant(_UNSEEN)
    if real is not None and not attention.causal:
        seen = graph.constant(np.zeros((attention.heads, 1), np.float32))
        hidden = graph.node("Where", graph.node("Unsqueeze", real, graph.constant([1])), seen, unseen)  # (B, H, n)
        return graph.node("Reshape", hidden, graph.constant([-1, 1, 0]))  # 0 keeps n
    scalar = graph.node("Squeeze", flow.length)
    position = graph.node("Range", graph.constant(np.array(0)), scalar, graph.constant(np.array(1)))
    before = graph.node("LessOrEqual", position, graph.node("Unsqueeze", position, graph.constant([1])))
    if real is None:
        return graph.node("Where", before, graph.constant(0.0), unseen)
    both = graph.node("And", graph.node("Unsqueeze", real, graph.constant([1, 2])), before)
    hidden = graph.node("Where", both, graph.constant(np.zeros((attention.heads, 1, 1), np.float32)), unseen)
    shape = graph.node("Concat", graph.constant([-1]), flow.length, flow.length, axis=0)
    return graph.node("Reshape", hidden, shape)


def _output_bias(graph: Graph, attention: Attention) -> str | None:
    """Return the output's bias with the value's in it: weights sum to 1, so ``(P (V + b)) W = P V W + b W``."""
    value, output = attention.value.bias, attention.output.bias
    name = f"{attention.output.name}/bias"
    if value is None:
        return None if output is None else graph.tensor(output, name)
    sources = (value, attention.output.kernel, output)
    found = graph.find(*sources, form="output bias")
    if found is not None:
        return found
    per_head = value.reshape(attention.kv_heads, attention.head_dim).repeat(
        attention.heads // attention.kv_heads, axis=0
    )
    bias = per_head.reshape(-1).astype(np.float64) @ attention.output.kernel + (0.0 if output is None else output)
    return graph.tensor(bias.astype(np.float32), name, *sources, form="output bias")


def feed_forward(weights: Products, block: FeedForward, x: str) -> str:
    """Return the feed-forward of rows `x`, of an encoder as of a language model."""
    graph = weights.graph
    up = weights.linear(x, block.up)
    if block.gate is None:
        hidden = activate(graph, block.activation, up)
    else:
        hidden = graph.node("Mul", activate(graph, block.activation, weights.linear(x, block.gate)), up)
    if block.turn is not None:
        width = block.down.kernel.shape[0]
        runs = graph.node("Reshape", hidden, graph.constant([-1, len(block.turn)]))
        turned = graph.node("MatMul", runs, graph.tensor(block.turn, "turn"))
        hidden = graph.node("Reshape", turned, graph.constant([-1, width]))
    return weights.linear(hidden, block.down)
