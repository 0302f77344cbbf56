"""The layers of a language model as ONNX nodes, around ONNX Runtime's ``GroupQueryAttention``.

Dimensions: ``B`` sequences, ``n`` new tokens, ``D`` width, ``H`` heads, ``K`` key/value heads, ``A`` width of a head in the
spec, ``A'`` in the file.

Activations are rows ``(B*n, D)``: ONNX Runtime merges additions and norms only in three dimensions, and its merged operators
are the slower ones. Measured with 1.32, one thread, AVX2, width 768, in µs for 1 and for 64 rows: addition and RMS norm 2.0
and 24, ``SkipSimplifiedLayerNormalization`` 2.1 and 64; addition and layer norm 2.3 and 38, ``SkipLayerNormalization`` 5.7
and 292.

``GroupQueryAttention`` takes heads whose width is a multiple of 8, of 16 where it turns them. Others are filled up with
zeros, which changes no score and no mixed value. Where only a part of a head is turned, its elements are put in another order
(the same in queries and keys, so that their products stay), and those that stay are turned by the angle 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.emit.onnx_blocks import feed_forward, normalise
from edgelm_converters.emit.onnx_decoder_weights import DecoderWeights, Kernel, linear_kernel
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_relative import bias_by_distance
from edgelm_converters.emit.quantize import stored_form
from edgelm_converters.spec import Attention, Float32, Grid, Layer, Linear, Norm, Rotary

__all__ = ["CrossAttend", "DecoderFlow", "cached_width", "decode_layer"]

# Of a layer's cross-attention, rows of its input and the layer's index: rows of its output.
CrossAttend = Callable[[Attention, str, int], str]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class DecoderFlow:
    """What every layer needs.

    Attributes:
        weights: The graph and the recipe.
        shape: ``(B, n)``, int64.
        lengths: Index of the last position of each sequence, int32 ``(B,)``.
        total: Positions, those in the cache and the new ones, int32 scalar.
        context_length: Rows of the tables of angles.
        counts: The first token whose score is wanted and the end, ``n``: int64 ``(1,)`` both.
        cross: What computes the cross-attention of an encoder-decoder; None in the others.
        places: Positions of the new tokens and of all, int64 ``(n,)`` and ``(total,)``; None where no layer has a bias.
    """

    weights: DecoderWeights
    shape: str
    lengths: str
    total: str
    context_length: int
    counts: tuple[str, str]
    cross: CrossAttend | None = None
    places: tuple[str, str] | None = None

    @property
    def graph(self) -> Graph:
        """The graph under construction."""
        return self.weights.graph

    def sequences(self, rows: str) -> str:
        """Return rows ``(B*n, …)`` as ``(B, n, …)``."""
        graph = self.graph
        return graph.node("Reshape", rows, graph.node("Concat", self.shape, graph.constant([-1]), axis=0))

    def wanted(self, rows: str, width: int) -> str:
        """Return those rows of ``(B*n, width)`` whose scores are wanted, the last ones of each sequence."""
        graph = self.graph
        start, end = self.counts
        picked = graph.node("Slice", self.sequences(rows), start, end, graph.constant([1]))
        return graph.node("Reshape", picked, graph.constant([-1, width]))


def cached_width(attention: Attention) -> int:
    """Return ``A'``: how wide a head is in the cache."""
    step = 8 if attention.rotary is None else 16
    return -(-attention.head_dim // step) * step


def decode_layer(flow: DecoderFlow, layer: Layer, x: str, index: int, *, last: bool) -> str:
    """Return a layer's output for rows `x`; of the last layer only the rows whose scores are wanted.

    The last layer's output and feed-forward serve nothing but the scores: a prompt of which only the last position is scored
    saves two thirds of a layer.
    """
    graph, name = flow.graph, layer.attention.output.name
    pre = layer.norm_placement == "pre"
    seen = normalise(graph, layer.attention_norm, x, f"{name}/norm") if pre else x
    mixed = _attend(flow, layer.attention, seen, index)
    if last:
        attention = layer.attention
        x = flow.wanted(x, attention.query.kernel.shape[0])
        mixed = flow.wanted(mixed, attention.heads * cached_width(attention))
    mixed = flow.weights.product(mixed, _output_kernel(layer.attention), _bias(graph, layer.attention.output))
    if not pre:
        x = normalise(graph, layer.attention_norm, graph.node("Add", x, mixed), f"{name}/norm")
        x = _cross(flow, layer, x, index, pre=False)
        added = feed_forward(flow.weights, layer.feed_forward, x)
        return normalise(graph, layer.feed_forward_norm, graph.node("Add", x, added), f"{name}/feed_forward_norm")
    x = graph.node("Add", x, _maybe_norm(graph, layer.attention_post_norm, mixed, f"{name}/post_norm"))
    x = _cross(flow, layer, x, index, pre=True)
    added = feed_forward(
        flow.weights, layer.feed_forward, normalise(graph, layer.feed_forward_norm, x, f"{name}/feed_forward_norm")
    )
    return graph.node(
        "Add", x, _maybe_norm(graph, layer.feed_forward_post_norm, added, f"{name}/feed_forward_post_norm")
    )


def _cross(flow: DecoderFlow, layer: Layer, x: str, index: int, *, pre: bool) -> str:
    """Return rows `x` after the layer's cross-attention, where it has one."""
    attention, norm = layer.cross_attention, layer.cross_attention_norm
    if flow.cross is None or attention is None or norm is None:
        return x
    graph, name = flow.graph, f"{attention.output.name}/norm"
    if pre:
        return graph.node("Add", x, flow.cross(attention, normalise(graph, norm, x, name), index))
    return normalise(graph, norm, graph.node("Add", x, flow.cross(attention, x, index)), name)


def _maybe_norm(graph: Graph, norm: Norm | None, x: str, name: str) -> str:
    return x if norm is None else normalise(graph, norm, x, name)


def _attend(flow: DecoderFlow, attention: Attention, x: str, index: int) -> str:
    """Return the mixed values as rows ``(B*n, H*A')``, and give the layer's cache its new name."""
    graph = flow.graph
    normed = attention.query_norm is not None or attention.key_norm is not None
    parts = _normed_parts(flow, attention, x) if normed else (_packed(flow, attention, x), "", "")
    tables = () if attention.rotary is None else _rotary_tables(flow, attention.rotary, cached_width(attention))
    options: dict[str, int | float] = {"scale": float(attention.scale)}
    if attention.rotary is not None:
        options["do_rotary"] = 1
    if attention.soft_cap is not None:
        options["softcap"] = float(attention.soft_cap)
    if attention.window is not None:
        options["local_window_size"] = attention.window
    mixed, key, value = graph.nodes(
        "GroupQueryAttention",
        *parts,
        f"past_key_values.{index}.key",
        f"past_key_values.{index}.value",
        flow.lengths,
        flow.total,
        *tables,
        *_bias_of_distances(flow, attention),
        outputs=3,
        contrib=True,
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        **options,
    )
    graph.rename(key, f"present.{index}.key")
    graph.rename(value, f"present.{index}.value")
    return graph.node("Reshape", mixed, graph.constant([-1, attention.heads * cached_width(attention)]))


def _bias_of_distances(flow: DecoderFlow, attention: Attention) -> tuple[str, ...]:
    """Return the inputs of ``GroupQueryAttention`` from its tables of angles on, where it has a bias ``(1, H, n, total)``."""
    if attention.relative is None or flow.places is None:
        return ()
    bias = bias_by_distance(flow.graph, attention.relative, *flow.places)
    return ("", "", "", flow.graph.node("Unsqueeze", bias, flow.graph.constant([0])))


def _packed(flow: DecoderFlow, attention: Attention, x: str) -> str:
    """Return queries, keys and values side by side, out of one product: ``(B, n, (H + 2K) * A')``."""
    turned, kept = _places(attention)
    parts = ((attention.query, turned), (attention.key, turned), (attention.value, kept))
    return flow.sequences(_joined(flow, attention, x, parts, form=f"packed {attention.head_dim}"))


def _normed_parts(flow: DecoderFlow, attention: Attention, x: str) -> tuple[str, str, str]:
    """Return queries, keys and values ``(B, n, heads * A')``, each head of the first two normalised before it is filled up.

    ONNX Runtime 1.32 can normalise inside the operator; 1.22 cannot.
    """
    graph, A = flow.graph, attention.head_dim
    turned, kept = _places(attention)
    parts = ((attention.query, None), (attention.key, None), (attention.value, kept))
    joined = _joined(flow, attention, x, parts, form="beside each other")
    sizes = [attention.heads * A, attention.kv_heads * A, attention.kv_heads * len(kept)]
    query, key, value = graph.nodes("Split", joined, graph.constant(sizes), outputs=3, axis=-1)
    heads = []
    for linear, norm, rows, count in (
        (attention.query, attention.query_norm, query, attention.heads),
        (attention.key, attention.key_norm, key, attention.kv_heads),
    ):
        y = graph.node("Reshape", rows, graph.constant([-1, A]))
        y = _maybe_norm(graph, norm, y, f"{linear.name}/norm")
        if not _is_identity(turned, A):
            filled = graph.node("Pad", y, graph.constant([0, 0, 0, 1]))  # place A is a zero
            y = graph.node("Gather", filled, graph.constant(np.where(turned < 0, A, turned).astype(np.int64)), axis=1)
        y = graph.node("Reshape", y, graph.constant([-1, count * len(turned)]))
        heads.append(flow.sequences(y))
    return heads[0], heads[1], flow.sequences(value)


def _joined(
    flow: DecoderFlow,
    attention: Attention,
    x: str,
    parts: tuple[tuple[Linear, Places | None], ...],
    *,
    form: str,
) -> str:
    """Return the products of several kernels with rows `x`, side by side, the heads' elements in their places.

    They are one product, or one for each run of them that is stored in one form.
    """
    shape = attention.query.kernel.shape[0], sum(linear.kernel.shape[1] for linear, _ in parts)
    runs = groupby(parts, key=lambda part: stored_form(flow.weights.recipe, shape, part[0].least_bits))
    products = [_run(flow, attention.head_dim, x, tuple(run), form=form) for _, run in runs]
    return products[0] if len(products) == 1 else flow.graph.node("Concat", *products, axis=1)


def _run(
    flow: DecoderFlow, head_dim: int, x: str, parts: tuple[tuple[Linear, Places | None], ...], *, form: str
) -> str:
    """Return the products of kernels that are stored in one form, as one product."""
    graph = flow.graph
    linears = tuple(linear for linear, _ in parts)
    sources = tuple(linear.kernel for linear in linears)
    # What the arrangement hangs on besides the kernels: two layers may share them and turn them otherwise.
    form = f"{form} {[None if places is None else places.tolist() for _, places in parts]}"

    def arrange(array: Float32, places: Places | None) -> Float32:
        return array if places is None else _arranged(array, head_dim, places)

    def make() -> Float32:
        return np.concatenate([arrange(linear.kernel, places) for linear, places in parts], axis=1)

    widths = (
        linear.kernel.shape[1] // head_dim * len(places) if places is not None else linear.kernel.shape[1]
        for linear, places in parts
    )
    name = "+".join((linears[0].name, *(linear.name.rsplit("/", 1)[-1] for linear in linears[1:])))
    kernel = Kernel(
        f"{name}/kernel",
        (sources[0].shape[0], sum(widths)),
        sources,
        form,
        make,
        _joined_grid(parts, head_dim),
        max(linear.least_bits for linear in linears),
    )
    bias = None
    if any(linear.bias is not None for linear in linears):
        biases = [
            np.zeros(linear.kernel.shape[1], np.float32) if linear.bias is None else linear.bias for linear in linears
        ]
        arranged = [arrange(array, places) for array, (_, places) in zip(biases, parts, strict=True)]
        bias = graph.tensor(np.concatenate(arranged), f"{name}/bias", *(linear.bias for linear in linears), form=form)
    return flow.weights.product(x, kernel, bias)


def _joined_grid(parts: tuple[tuple[Linear, Places | None], ...], head_dim: int) -> Grid | None:
    """Return the grid of kernels side by side, if all of them were rounded; the scale is 1 where zeros are filled in."""
    scales = []
    for linear, places in parts:
        if linear.grid is None:
            return None
        scale = linear.grid.scale
        scales.append(scale if places is None else _arranged(scale.T, head_dim, places).T)
    joined = np.concatenate(scales)
    return Grid(np.where(joined == 0, np.float32(1), joined))


def _output_kernel(attention: Attention) -> Kernel:
    """Return the output's kernel, with rows of zeros where heads are filled up.

    Those move its values into other blocks than they were rounded in: 8 bits then keep what was rounded to 4.
    """
    _, kept = _places(attention)
    plain = linear_kernel(attention.output)
    A = attention.head_dim
    if _is_identity(kept, A):
        return plain
    kernel = attention.output.kernel
    shape = attention.heads * len(kept), kernel.shape[1]
    least_bits = plain.least_bits if attention.output.grid is None else max(plain.least_bits, 8)
    form = f"filled up {A}"
    return Kernel(plain.name, shape, (kernel,), form, lambda: _arranged(kernel.T, A, kept).T, least_bits=least_bits)


def _bias(graph: Graph, linear: Linear) -> str | None:
    return None if linear.bias is None else graph.tensor(linear.bias, f"{linear.name}/bias")


def _places(attention: Attention) -> tuple[Places, Places]:
    """Return for each of the A' elements which of the spec's stands there, -1 for a zero: of queries and keys, of values.

    ``GroupQueryAttention`` pairs element j with ``j + A'/2``, the spec with ``j + R/2`` where R elements are turned.
    """
    A, width = attention.head_dim, cached_width(attention)
    kept = np.full(width, -1)
    kept[:A] = np.arange(A)
    if attention.rotary is None:
        return kept, kept
    half = len(attention.rotary.frequencies)
    turned = np.full(width, -1)
    turned[:half] = np.arange(half)
    turned[width // 2 : width // 2 + half] = np.arange(half, 2 * half)
    turned[np.flatnonzero(turned < 0)[: A - 2 * half]] = np.arange(2 * half, A)
    return turned, kept


def _is_identity(places: Places, head_dim: int) -> bool:
    return len(places) == head_dim and bool((places == np.arange(head_dim)).all())


def _arranged(array: Float32, head_dim: int, places: Places) -> Float32:
    """Return an array ``(…, heads * A)`` as ``(…, heads * A')``."""
    if _is_identity(places, head_dim):
        return array
    heads = array.reshape(*array.shape[:-1], -1, head_dim)
    filled = np.where(places < 0, np.float32(0), heads[..., np.maximum(places, 0)])
    return filled.reshape(*array.shape[:-1], -1)


def _rotary_tables(flow: DecoderFlow, rotary: Rotary, width: int) -> tuple[str, str]:
    """Return cosines and sines, float32 ``(context, A'/2)``; layers with the same angles share them."""
    graph = flow.graph
    angles = np.arange(flow.context_length)[:, None] * rotary.frequencies.astype(np.float64)
    cos, sin = np.ones((len(angles), width // 2), np.float32), np.zeros((len(angles), width // 2), np.float32)
    half = len(rotary.frequencies)
    cos[:, :half] = rotary.factor * np.cos(angles)
    sin[:, :half] = rotary.factor * np.sin(angles)
    return graph.constant(cos), graph.constant(sin)
