"""An encoder-decoder's spec as two ONNX files for ONNX Runtime's CPU provider, over one file of weights.

``encoder.onnx`` reads sources and is called once for each:

- ``source_ids`` int32 ``(B, S)`` and ``source_mask`` int32 ``(B, S)``, 1 where a token counts; or ``frames`` ``(B, n, M)``.
- ``cross.{i}.key`` and ``.value`` float32 ``(B, H, S, A)``: of the cross-attention of every layer of the decoder.
- ``source_seen`` int32 ``(B, S)``: the mask, less what the model itself takes for padding. Not of frames, which all count.

``decoder.onnx`` is called once for each token:

- ``input_ids`` int32 ``(R, n)``, the new tokens of R rows; ``positions`` int32 ``(n,)``, theirs; and what the encoder gave.
- ``past_key_values.{i}.key`` and ``.value`` float32 ``(R, K, past, A')``, ``present.{i}.key`` and ``.value``: the cache,
  updated in place where both are bound to the same memory.
- ``logits`` float32 ``(R, 1, V)``: the scores of the token after the last one.

Rows of one source, such as beams, follow on each other, and R is a multiple of B.

Dimensions: ``B`` sources, ``S`` source tokens, ``R`` rows, ``n`` new tokens, ``M`` mel bands, ``H`` heads, ``K`` key/value
heads, ``A`` width of a head, ``A'`` of one in the cache, ``V`` tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgelm.bundle.manifest import CacheRecord, Port, Signature
from edgelm.errors import ConversionError, ModelError
from edgelm_converters.emit.onnx_blocks import normalise
from edgelm_converters.emit.onnx_cross import CrossFlow
from edgelm_converters.emit.onnx_decoder_blocks import DecoderFlow, cached_width, decode_layer
from edgelm_converters.emit.onnx_decoder_weights import DecoderWeights
from edgelm_converters.emit.onnx_file import write_together
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_source import encode_source
from edgelm_converters.emit.onnx_weights import INT64
from edgelm_converters.emit.quantize import check_finite, weight_recipe
from edgelm_converters.spec import Source, TokenHead, TransformerSpec

__all__ = ["DATA_FILE", "DECODER_FILE", "ENCODER_FILE", "emit_onnx_seq2seq"]

ENCODER_FILE, DECODER_FILE, DATA_FILE = "encoder.onnx", "decoder.onnx", "model.onnx.data"

_IDS, _POSITIONS, _LOGITS = "input_ids", "positions", "logits"
_MASK, _SEEN = "source_mask", "source_seen"
_CROSS = ("cross.{i}.key", "cross.{i}.value")
_PAST, _PRESENT = ("past_key_values.{i}.key", "past_key_values.{i}.value"), ("present.{i}.key", "present.{i}.value")
_AXES = {
    _IDS: ("rows", "tokens"), _POSITIONS: ("tokens",), _LOGITS: ("rows", "one", "tokens"),
}  # fmt: skip
_END = np.iinfo(np.int64).max


def emit_onnx_seq2seq(spec: TransformerSpec, folder: Path, *, recipe: str, target_length: int) -> tuple[Signature, ...]:
    """Write an encoder-decoder as `ENCODER_FILE` and `DECODER_FILE`, which onnxruntime >= 1.22 opens, and `DATA_FILE`.

    The decoder's metadata say how long an answer may get (``edgelm.target_length``), the encoder's how long a source
    (``edgelm.source_length``) where the spec says so.

    Args:
        spec: The model.
        folder: Where the files are written.
        recipe: Any without calibrated ranges. The encoder's products are those of `edgelm_converters.emit.onnx_weights`, tables
            and the decoder's those of `edgelm_converters.emit.onnx_decoder_weights`; what is tied is stored once.
        target_length: The most positions of an answer; at most what the spec takes.

    Returns:
        Two signatures, ``"encode"`` and ``"decode"``, each of a file of its own.

    Raises:
        ModelError: The spec is no encoder-decoder, holds a NaN or an infinity, or has what an encoder-decoder has not.
        RecipeError: The recipe is unknown or needs calibrated ranges, or a weight is too large for float16.
        ConversionError: An answer is longer than the spec takes, or a kernel was rounded in other blocks than the recipe's.
    """
    chosen = weight_recipe(recipe)
    source, head = _check(spec, target_length)
    check_finite(spec)
    encoder = Graph()
    encode_source(encoder, chosen, spec, source, (_CROSS, _MASK, _SEEN))
    decoder = Graph(beside=encoder)
    _decode(DecoderWeights(decoder, chosen), spec, head, target_length)
    signatures = _signatures(spec, source)
    limits = (
        {} if source.max_length is None else {"edgelm.source_length": str(source.max_length)},
        {"edgelm.target_length": str(target_length)},
    )
    models = []
    for graph, signature, metadata in zip((encoder, decoder), signatures, limits, strict=True):
        inputs, outputs = _ports(signature)
        model = graph.model(spec.name, inputs, outputs, axes=_axes((*inputs, *outputs)), metadata=metadata)
        models.append((model, graph.tensors, folder / (signature.file or "")))
    write_together(models, folder / DATA_FILE)
    return signatures


def _check(spec: TransformerSpec, target_length: int) -> tuple[Source, TokenHead]:
    """Return what a spec reads and its head, if this module can write it."""
    source, head, layers = spec.source, spec.head.tokens, spec.decoder.layers
    if source is None or head is None or not layers or not spec.encoder.layers or spec.embeddings.segment is not None:
        raise ModelError(
            f"The model '{spec.name}' is no encoder-decoder: it has no source, no encoder, no decoder or no token head."
        )
    crossing = [layer.cross_attention for layer in layers if layer.cross_attention is not None]
    if len(crossing) < len(layers) or any(layer.cross_attention_norm is None for layer in layers):
        raise ModelError(
            f"A layer of the decoder of '{spec.name}' does not read the source: it has no cross-attention."
        )
    if len({id(attention.key.kernel) for attention in crossing}) < len(crossing):
        raise ModelError(
            f"Layers of the decoder of '{spec.name}' share their cross-attention, which an ONNX bundle does not describe: "
            "convert it with --to tflite."
        )
    for attention in (*(layer.attention for layer in spec.encoder.layers), *crossing):
        if attention.rotary or attention.query_norm or attention.key_norm or attention.soft_cap:
            raise ModelError(
                f"The attention '{attention.query.name}' of '{spec.name}' turns, normalises or caps, which encoders and "
                "cross-attention do not in an ONNX file: leave it out, or convert with --to tflite."
            )
    for attentions, what in (
        ([(a.heads, a.head_dim) for a in crossing], "cross-attention"),
        ([(layer.attention.kv_heads, cached_width(layer.attention)) for layer in layers], "self-attention"),
    ):
        if len(set(attentions)) > 1:
            found = ", ".join(f"{heads} heads of {width}" for heads, width in sorted(set(attentions)))
            raise ModelError(
                f"The layers of '{spec.name}' have keys of different shapes in their {what} ({found}), and an ONNX bundle "
                "describes one for all: convert it with --to tflite."
            )
    if not all(layer.attention.causal for layer in layers):
        raise ModelError(
            f"The decoder of '{spec.name}' has a layer that sees what comes after a token: it cannot be cached."
        )
    longest = spec.max_length if spec.embeddings.position is None else len(spec.embeddings.position)
    if target_length < 1 or (longest is not None and target_length > longest):
        raise ConversionError(
            f"Answers of {target_length} tokens were asked for, and '{spec.name}' makes 1 to {longest or 'any number'}."
        )
    return source, head


def _decode(weights: DecoderWeights, spec: TransformerSpec, head: TokenHead, target_length: int) -> None:
    """Build the decoder's graph."""
    graph, parts, layers = weights.graph, spec.embeddings, spec.decoder.layers
    shape = graph.node("Shape", _IDS)
    last = graph.node("Gather", _POSITIONS, graph.constant(np.array(-1)))
    total = graph.node("Add", last, graph.constant(np.array(1, np.int32)))
    places = None
    if any(layer.attention.relative is not None for layer in layers):
        zero, one = (graph.constant(np.array(value)) for value in (0, 1))
        everything = graph.node("Range", zero, graph.node("Cast", total, to=INT64), one)
        places = (graph.node("Cast", _POSITIONS, to=INT64), everything)
    hears = spec.source is not None and spec.source.audio is not None
    sources = graph.node("Shape", _CROSS[0].replace("{i}", "0"), start=0, end=1)
    cross = CrossFlow(weights, sources, _CROSS, None if hears else _SEEN)
    flow = DecoderFlow(
        weights=weights,
        shape=shape,
        lengths=graph.node("Expand", last, graph.node("Shape", _IDS, start=0, end=1)),
        total=total,
        context_length=target_length,
        counts=(graph.constant([-1]), graph.constant([_END])),
        cross=cross.attend,
        places=places,
    )
    ids = graph.node("Reshape", _IDS, graph.constant([-1]))
    x = weights.rows(parts.token, "embeddings/token", ids, factor=parts.token_scale, least_bits=parts.least_bits)
    if parts.position is not None:
        rows = weights.rows(parts.position, "embeddings/position", _POSITIONS, least_bits=parts.least_bits)
        width = parts.token.shape[1]
        x = graph.node("Reshape", graph.node("Add", flow.sequences(x), rows), graph.constant([-1, width]))
    if parts.norm is not None:
        x = normalise(graph, parts.norm, x, "embeddings/norm")
    if parts.projection is not None:
        x = weights.linear(x, parts.projection)
    for index, layer in enumerate(layers):
        x = decode_layer(flow, layer, x, index, last=index == len(layers) - 1)
    if spec.decoder.final_norm is not None:
        x = normalise(graph, spec.decoder.final_norm, x, "final_norm")
    if head.mixing is not None:
        x = graph.node("Add", x, weights.linear(x, head.mixing))
    scores = weights.scores(x, head)
    if head.soft_cap is not None:
        cap = graph.constant(float(head.soft_cap))
        scores = graph.node("Mul", graph.node("Tanh", graph.node("Div", scores, cap)), cap)
    graph.rename(graph.node("Unsqueeze", scores, graph.constant([1])), _LOGITS)


def _signatures(spec: TransformerSpec, source: Source) -> tuple[Signature, Signature]:
    """Return how the two files are called."""
    layers = spec.decoder.layers
    attention, crossing = layers[0].attention, layers[0].cross_attention
    shape = (None, attention.kv_heads, None, cached_width(attention))
    cache = CacheRecord(len(layers), _PAST, _PRESENT, shape, "float32", None)
    held = attention if crossing is None else crossing
    encoded = CacheRecord(len(layers), _CROSS, _CROSS, (None, held.heads, None, held.head_dim), "float32", None)
    if source.audio is not None:
        read: tuple[Port, ...] = (
            Port(source.input, "float32", (None, None, source.audio.kernels[0].shape[1]), "frames"),
        )
        seen: tuple[Port, ...] = ()
    else:
        read = (
            Port(source.input, "int32", (None, None), "source_ids"),
            Port(_MASK, "int32", (None, None), "source_mask"),
        )
        seen = (Port(_SEEN, "int32", (None, None), "source_mask"),)
    taken = (Port(_IDS, "int32", (None, None), "token_ids"), Port(_POSITIONS, "int32", (None,), "positions"), *seen)
    logits = Port(_LOGITS, "float32", (None, 1, spec.vocabulary_size), "logits")
    return (
        Signature("encode", None, read, seen, "encode", source=encoded, rows=None, file=ENCODER_FILE),
        Signature("decode", None, taken, (logits,), "decode", cache, encoded, rows=None, file=DECODER_FILE),
    )


def _ports(signature: Signature) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Return all inputs and outputs of a file, caches included."""

    def named(record: CacheRecord | None, names: tuple[str, str] | None) -> tuple[Port, ...]:
        if record is None or names is None:
            return ()
        layers = range(record.layers)
        return tuple(
            Port(name.replace("{i}", str(index)), record.dtype, record.shape, "raw")
            for index in layers
            for name in names
        )

    source, cache = signature.source, signature.cache
    if signature.kind == "encode":
        return signature.inputs, (*signature.outputs, *named(source, _CROSS))
    return (
        (*signature.inputs, *named(source, _CROSS), *named(cache, _PAST)),
        (*signature.outputs, *named(cache, _PRESENT)),
    )


def _axes(ports: tuple[Port, ...]) -> dict[str, tuple[str, ...]]:
    """Return what the axes of each port are called where they are free."""
    found: dict[str, tuple[str, ...]] = {}
    for port in ports:
        if port.name.startswith("cross."):
            found[port.name] = ("batch", "heads", "source", "width")
        elif port.name.startswith(("past_key_values.", "present.")):
            found[port.name] = ("rows", "heads", port.name.partition(".")[0], "width")
        else:
            usual = ("batch", "source", "width")
            found[port.name] = _AXES.get(port.name, usual)
    return found
