"""A language model's spec as an ONNX file for ONNX Runtime's CPU provider, and for ONNX Runtime GenAI.

The file takes new tokens and the cache of those before, and gives scores and the cache with the new ones. Names, dtypes and
shapes are those that ONNX Runtime GenAI expects:

- ``input_ids`` int64 ``(B, n)``; ``attention_mask`` int64 ``(B, total)``, ones: its length is what tells the position.
- ``past_key_values.{i}.key`` and ``.value`` float32 ``(B, K, past, A')``, ``present.{i}.key`` and ``.value``. Bound to the same
  memory, longer than what is in it, the cache is updated in place.
- ``logits`` float32 ``(B, logits_count, V)``, declared as ``(B, 1, V)``: GenAI (0.18) makes room for the scores of every
  token of a prompt unless the file says that there is one row, which is what it gets.
- ``logits_count`` int64 ``(1,)``, which need not be given: the scores of how many of the last tokens are computed, 1 unless
  it is said. 0 is allowed, and leaves out the head and most of the last layer.

Several sequences in one call have the same length.

Dimensions: ``B`` sequences, ``n`` new tokens, ``D`` width, ``K`` key/value heads, ``A'`` width of a cached head, ``V`` tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgelm.bundle.manifest import CacheRecord, Port, Signature
from edgelm.errors import ConversionError, ModelError
from edgelm_converters.emit.onnx_blocks import normalise
from edgelm_converters.emit.onnx_decoder_blocks import DecoderFlow, cached_width, decode_layer
from edgelm_converters.emit.onnx_decoder_weights import DecoderWeights
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_weights import INT32
from edgelm_converters.emit.quantize import check_finite, weight_recipe
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import TokenHead, TransformerSpec

__all__ = ["emit_onnx_decoder"]

_IDS, _MASK, _LOGITS, _COUNT = "input_ids", "attention_mask", "logits", "logits_count"
# Up to 1.23, GroupQueryAttention saw one position more than local_window_size says (tried: 1.22.1, 1.23.2; right in 1.24.1).
_WINDOWS_FROM = "1.24"
# ONNX Runtime maps a file of weights into memory, and reads the weights of a model file into memory of its own. Of a tied head
# it keeps a packed copy and the table: mapped, the table costs the rows that are read. Measured with 107 M weights (12 layers,
# width 768, 32,000 tokens) on ONNX Runtime 1.32, memory of the process that is not mapped from a file: int8 158 MB instead
# of 217, int4 134 instead of 186. Smaller models are one file, which is handier.
_EXTERNAL_ABOVE = 64 << 20


def emit_onnx_decoder(spec: TransformerSpec, path: Path, *, recipe: str, context_length: int) -> tuple[Signature, ...]:
    """Write a language model as an ONNX file that onnxruntime >= 1.22 opens (>= 1.24 where layers have a window).

    The file's metadata say how long it may get (``edgelm.context_length``) and which ONNX Runtime computes it rightly
    (``edgelm.onnxruntime``).

    Args:
        spec: The model.
        path: The file to write. Weights of more than 64 MiB go to ``NAME.onnx.data`` beside it.
        recipe: Any without calibrated ranges; `edgelm_converters.emit.onnx_decoder_weights` says what each does. A tied head
            shares its bytes with the embeddings under each of them.
        context_length: The most positions; at most what the spec takes.

    Returns:
        The one signature, ``"main"``.

    Raises:
        ModelError: The spec is no language model, holds a NaN or an infinity, or its layers have caches of different shapes.
        RecipeError: The recipe is unknown or needs calibrated ranges, or a weight is too large for float16.
        ConversionError: The context is longer than the spec takes, or a kernel was rounded in other blocks than the recipe's.
    """
    chosen = weight_recipe(recipe)
    head = _check(spec, context_length)
    check_finite(spec)
    graph = Graph()
    flow = _start(graph, chosen, context_length)
    x = _embed(flow, spec)
    layers = spec.decoder.layers
    for index, layer in enumerate(layers):
        x = decode_layer(flow, layer, x, index, last=index == len(layers) - 1)
    if spec.decoder.final_norm is not None:
        x = normalise(graph, spec.decoder.final_norm, x, "final_norm")
    graph.rename(_scores(flow, head, x), _LOGITS)
    signature = _signature(spec, _cache(spec))
    metadata = {"edgelm.context_length": str(context_length)}
    if any(layer.attention.window is not None for layer in layers):
        metadata["edgelm.onnxruntime"] = _WINDOWS_FROM
    _write(graph, path, spec, signature, metadata)
    return (signature,)


def _check(spec: TransformerSpec, context_length: int) -> TokenHead:
    """Return the head of a spec that this module can write."""
    head = spec.head.tokens
    if head is None or not spec.decoder.layers or spec.embeddings.segment is not None:
        raise ModelError(
            f"The model '{spec.name}' is no language model: it has no decoder, no token head, or takes segments."
        )
    shapes = {(layer.attention.kv_heads, cached_width(layer.attention)) for layer in spec.decoder.layers}
    if len(shapes) > 1:
        found = ", ".join(f"{heads} heads of {width}" for heads, width in sorted(shapes))
        raise ModelError(
            f"The layers of '{spec.name}' have caches of different shapes ({found}), and an ONNX bundle describes one for all: "
            "convert it with --to tflite."
        )
    if not all(layer.attention.causal for layer in spec.decoder.layers):
        raise ModelError(
            f"The decoder of '{spec.name}' has a layer that sees what comes after a token: it cannot be cached."
        )
    if any(layer.attention.relative or layer.cross_attention for layer in spec.decoder.layers):
        raise ModelError(
            f"The decoder of '{spec.name}' has relative positions or reads a source, as encoder-decoders do: convert it as one."
        )
    longest = spec.max_length if spec.embeddings.position is None else len(spec.embeddings.position)
    if context_length < 1 or (longest is not None and context_length > longest):
        raise ConversionError(
            f"A context of {context_length} tokens was asked for, and '{spec.name}' takes 1 to {longest or 'any number'}."
        )
    return head


def _start(graph: Graph, recipe: Recipe, context_length: int) -> DecoderFlow:
    """Return the flow: lengths out of the mask's shape and the ids'."""
    one = graph.constant([1])
    total = graph.node("Shape", _MASK, start=1, end=2)
    lengths = graph.node("Sub", graph.node("ReduceSum", _MASK, one, keepdims=0), one)
    count = graph.tensor(np.array([1], np.int64), _COUNT)
    length = graph.node("Shape", _IDS, start=1, end=2)
    return DecoderFlow(
        weights=DecoderWeights(graph, recipe),
        shape=graph.node("Shape", _IDS),
        lengths=graph.node("Cast", lengths, to=INT32),
        total=graph.node("Cast", graph.node("Squeeze", total), to=INT32),
        context_length=context_length,
        counts=(graph.node("Sub", length, count), length),
    )


def _embed(flow: DecoderFlow, spec: TransformerSpec) -> str:
    """Return the embedded tokens as rows ``(B*n, D)``."""
    graph, weights, parts = flow.graph, flow.weights, spec.embeddings
    ids = graph.node("Reshape", _IDS, graph.constant([-1]))
    x = weights.rows(parts.token, "embeddings/token", ids, factor=parts.token_scale, least_bits=parts.least_bits)
    if parts.position is not None:
        # The new tokens are the last ones of the mask. (B, n) out of one row of n: Expand, as Range takes no batch.
        end = graph.node("Shape", _MASK, start=1, end=2)
        start = graph.node("Sub", end, graph.node("Shape", _IDS, start=1, end=2))
        numbers = graph.constant(np.arange(flow.context_length))
        places = graph.node("Expand", graph.node("Slice", numbers, start, end, graph.constant([0])), flow.shape)
        places = graph.node("Reshape", places, graph.constant([-1]))
        rows = weights.rows(parts.position, "embeddings/position", places, least_bits=parts.least_bits)
        x = graph.node("Add", x, rows)
    if parts.norm is not None:
        x = normalise(graph, parts.norm, x, "embeddings/norm")
    return x if parts.projection is None else weights.linear(x, parts.projection)


def _scores(flow: DecoderFlow, head: TokenHead, x: str) -> str:
    """Return the scores ``(B, logits_count, V)`` of rows `x` ``(B*logits_count, D)``."""
    graph = flow.graph
    if head.mixing is not None:
        x = graph.node("Add", x, flow.weights.linear(x, head.mixing))
    scores = flow.weights.scores(x, head)
    if head.soft_cap is not None:
        cap = graph.constant(float(head.soft_cap))
        scores = graph.node("Mul", graph.node("Tanh", graph.node("Div", scores, cap)), cap)
    batch = graph.node("Shape", _IDS, start=0, end=1)
    shape = graph.node("Concat", batch, _COUNT, graph.constant([len(head.table)]), axis=0)
    return graph.node("Reshape", scores, shape, allowzero=1)


def _cache(spec: TransformerSpec) -> CacheRecord:
    """Return what the keys and values of all layers are called and how large they are."""
    layers = spec.decoder.layers
    attention = layers[0].attention
    return CacheRecord(
        layers=len(layers),
        inputs=("past_key_values.{i}.key", "past_key_values.{i}.value"),
        outputs=("present.{i}.key", "present.{i}.value"),
        shape=(None, attention.kv_heads, None, cached_width(attention)),
        dtype="float32",
        length=None,
    )


def _signature(spec: TransformerSpec, cache: CacheRecord) -> Signature:
    """Return how the file is called."""
    return Signature(
        "main",
        None,
        (Port(_IDS, "int64", (None, None), "token_ids"), Port(_MASK, "int64", (None, None), "padding_mask")),
        (Port(_LOGITS, "float32", (None, None, spec.vocabulary_size), "logits"),),
        kind="decode",
        cache=cache,
    )


def _write(graph: Graph, path: Path, spec: TransformerSpec, signature: Signature, metadata: dict[str, str]) -> None:
    """Write the graph, with the cache and the number of scores among its inputs and outputs."""
    cache = _cache(spec)
    axes: dict[str, tuple[str, ...]] = {_MASK: ("batch", "total_sequence")}
    caches: list[list[Port]] = []
    for names, axis in ((cache.inputs, "past_sequence"), (cache.outputs, "present_sequence")):
        ports = [
            Port(name.replace("{i}", str(index)), cache.dtype, cache.shape, "raw")
            for index in range(cache.layers)
            for name in names
        ]
        axes.update({port.name: ("batch", "kv_heads", axis, "head_width") for port in ports})
        caches.append(ports)
    graph.write(
        path,
        spec.name,
        (*signature.inputs, Port(_COUNT, "int64", (1,), "raw"), *caches[0]),
        (Port(_LOGITS, "float32", (None, 1, spec.vocabulary_size), "logits"), *caches[1]),
        axes=axes,
        metadata=metadata,
        external_above=_EXTERNAL_ABOVE,
    )
