"""Encoder-decoders as TFLite files, written directly from a `TransformerSpec`.

For each length S of a source there is ``encode_{S}``, which reads it once, and for each number of beams b a signature that
computes one token of an answer: ``decode_{S}`` for one row, ``decode_{S}_x{b}`` for several. All share one copy of the weights.
``reorder_x{b}`` lets the beams go on with each other's caches, one tensor of them at a time.

There is no signature for several tokens of an answer: what an answer is forced to begin with is 1 token of a translation and up
to 4 of a transcription, whose source takes as long to read as 100 tokens to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgelm.bundle.manifest import CacheRecord, Port, Signature
from edgelm.errors import ConversionError
from edgelm_converters.emit.quantize import check_finite, weight_recipe
from edgelm_converters.emit.tflite_attention import Cache, SourceView, Step
from edgelm_converters.emit.tflite_blocks import apply_norm
from edgelm_converters.emit.tflite_cached import (
    KEYS,
    LOGITS,
    POSITIONS,
    TOKENS,
    VALUES,
    cache_inputs,
    decoder_layer,
    embedded_at,
    step_inputs,
    token_scores,
)
from edgelm_converters.emit.tflite_file import Model, write_model
from edgelm_converters.emit.tflite_graph import Graph, Weights
from edgelm_converters.emit.tflite_source import (
    SOURCE_BIAS,
    SOURCE_KEYS,
    SOURCE_VALUES,
    build_source,
    mask_input,
    source_positions,
)
from edgelm_converters.emit.tflite_weights import Store
from edgelm_converters.spec import Attention, Source, TokenHead, TransformerSpec

__all__ = ["emit_tflite_seq2seq"]

_ROWS, _TAKEN, _GIVEN = "rows", "cache", "reordered"


def emit_tflite_seq2seq(
    spec: TransformerSpec,
    path: Path,
    *,
    recipe: str,
    source_lengths: tuple[int, ...],
    target_length: int,
    beams: tuple[int, ...] = (1, 4),
) -> tuple[Signature, ...]:
    """Write an encoder-decoder as a TFLite file.

    Takes little more memory than the weights in the recipe's form. ``encode_{S}`` gives every decoder layer's keys and values
    of the source, float32 ``(1, K, S, A)``, that all rows read, and what is added to the scores of its padding, if it may have
    any. A signature that decodes takes these, one token of each row, int32 ``(b, 1)``, its position, int32 ``(1,)``, and the
    caches, float32 ``(b, K, T, A)``. It gives the scores, float32 ``(b, 1, V)``, and the caches, and updates them in place
    where input and output are one buffer.

    Args:
        spec: The model.
        path: The file to write. One that exists is replaced in place: give a path that no running program has opened.
        recipe: Any without calibrated ranges, as of `emit_tflite_decoder`.
        source_lengths: Tokens of each signature that encodes, of which the padding is hidden, or frames of audio, of which
            nothing is.
        target_length: Positions of an answer.
        beams: Rows of the signatures that decode.

    Returns:
        The signatures, by the source's length; of each, the one that encodes, then the others by their rows. `Signature.source`
        has the positions in the encoder: half of the frames of audio. Those that reorder rows come last.

    Raises:
        RecipeError: There is no such recipe, or its floats cannot hold the weights.
        ConversionError: It is no encoder-decoder, something in it is not written, a length makes no sense or is more than the
            model takes, or the file would be too large.
        ModelError: A weight is NaN or infinite.
    """
    chosen = weight_recipe(recipe)
    source_lengths, beams = tuple(sorted(set(source_lengths))), tuple(sorted(set(beams)))
    source, head = _parts(spec)
    _check_sizes(spec, source, source_lengths, target_length, beams)
    _check_attention(spec)
    check_finite(spec)
    model = Model(description=f"{spec.name}, {recipe}, written by edgelm")
    store = Store(Weights(model), chosen)
    signatures = []
    for count in source_lengths:
        encode = _encode_signature(spec, source, count)
        build_source(Graph(store.weights, encode.name), store, spec, count, source_lengths)
        signatures.append(encode)
        for rows in beams:
            decode = _decode_signature(spec, source, count, target_length, rows)
            positions = source_positions(source, count)
            _build_decode(Graph(store.weights, decode.name), store, spec, head, positions, target_length, rows)
            signatures.append(decode)
    for rows in beams:
        if rows > 1:
            reorder = _reorder_signature(signatures[1], rows)
            _build_reorder(Graph(store.weights, reorder.name), reorder)
            signatures.append(reorder)
    write_model(model, path)
    return tuple(signatures)


def _build_decode(
    graph: Graph, store: Store, spec: TransformerSpec, head: TokenHead, positions: int, length: int, rows: int
) -> None:
    """Add the decoder to an empty graph, for one token of each row, with its inputs and outputs."""
    tokens, places = step_inputs(graph, rows=rows, count=1)
    heard = spec.source is None or spec.source.audio is not None
    padding = None if heard else graph.input(SOURCE_BIAS, (1, 1, 1, positions), "float32")
    layers = spec.decoder.layers
    sources = [_source_inputs(graph, layer.cross_attention, i, positions) for i, layer in enumerate(layers)]
    caches = [cache_inputs(graph, layer.attention, i, rows=rows, length=length) for i, layer in enumerate(layers)]
    step = Step.at(graph, places, rows=rows, length=length)
    x = embedded_at(graph, store, spec.embeddings, tokens, places, length)
    written: list[Cache] = []
    for layer, (keys, values), cache in zip(layers, sources, caches, strict=True):
        x, updated = decoder_layer(graph, store, layer, x, cache, step, source=SourceView(keys, values, padding))
        written.append(updated)
    if spec.decoder.final_norm is not None:
        x = apply_norm(graph, spec.decoder.final_norm, x)
    graph.output(LOGITS, graph.reshape(token_scores(graph, store, head, x), (rows, 1, spec.vocabulary_size)))
    for index, (keys, values) in enumerate(written):
        graph.output(KEYS.format(i=index), keys)
        graph.output(VALUES.format(i=index), values)


def _build_reorder(graph: Graph, signature: Signature) -> None:
    """Add what copies rows to an empty graph.

    One tensor, and not a whole cache, since a copy cannot be made in place: the device needs room for one more tensor, and
    not for a second cache. On the device's host the same takes three times as long.
    """
    rows, taken = (
        graph.input(port.name, tuple(extent or 0 for extent in port.shape), port.dtype) for port in signature.inputs
    )
    graph.output(_GIVEN, graph.gather(taken, rows))


def _reorder_signature(decode: Signature, rows: int) -> Signature:
    if decode.cache is None:
        raise ValueError(f"'{decode.name}' has no cache.")
    shape = (rows, *decode.cache.shape[1:])
    inputs = (Port(_ROWS, "int32", (rows,), "raw"), Port(_TAKEN, "float32", shape, "raw"))
    return Signature(f"reorder_x{rows}", None, inputs, (Port(_GIVEN, "float32", shape, "raw"),), "reorder", rows=rows)


def _source_inputs(graph: Graph, attention: Attention | None, index: int, positions: int) -> Cache:
    if attention is None:
        raise ValueError(f"Layer {index} of the decoder has no cross-attention.")
    shape = (1, attention.kv_heads, positions, attention.head_dim)
    keys = graph.input(SOURCE_KEYS.format(i=index), shape, "float32")
    return keys, graph.input(SOURCE_VALUES.format(i=index), shape, "float32")


def _parts(spec: TransformerSpec) -> tuple[Source, TokenHead]:
    layers = spec.decoder.layers
    crossed = bool(layers) and all(
        layer.cross_attention is not None and layer.cross_attention_norm is not None for layer in layers
    )
    if spec.source is None or spec.head.tokens is None or not crossed or spec.embeddings.segment is not None:
        raise ConversionError(
            f"The model '{spec.name}' is no encoder-decoder: it lacks a source, a decoder that attends to it, or scores of "
            "tokens."
        )
    return spec.source, spec.head.tokens


def _check_sizes(
    spec: TransformerSpec, source: Source, source_lengths: tuple[int, ...], target_length: int, beams: tuple[int, ...]
) -> None:
    for what, numbers in (("source lengths", source_lengths), ("target length", (target_length,)), ("beams", beams)):
        if not numbers or min(numbers) < 1:
            raise ConversionError(
                f"An encoder-decoder's TFLite file needs {what} of at least 1, and was given {numbers}."
            )
    read = source.embeddings.position if source.embeddings is not None else None
    heard = None if source.audio is None else 2 * len(source.audio.position)
    limits = (source.max_length, heard, None if read is None else len(read))
    longest = min((limit for limit in limits if limit is not None), default=source_lengths[-1])
    if source_lengths[-1] > longest:
        raise ConversionError(
            f"The model '{spec.name}' reads at most {longest} {'tokens' if heard is None else 'frames'}, "
            f"not {source_lengths[-1]}: give shorter source lengths."
        )
    table = spec.embeddings.position
    known = [limit for limit in (spec.max_length, None if table is None else len(table)) if limit is not None]
    if known and target_length > min(known):
        raise ConversionError(
            f"The model '{spec.name}' answers with at most {min(known)} positions, not {target_length}: "
            "give a shorter target length."
        )


def _check_attention(spec: TransformerSpec) -> None:
    """Check what the graphs of the encoder and of cross-attention have no operators for, and that caches have one shape."""
    crosses = [layer.cross_attention for layer in spec.decoder.layers if layer.cross_attention is not None]
    for where, attentions in (
        ("the encoder", [layer.attention for layer in spec.encoder.layers]), ("cross-attention", crosses)
    ):  # fmt: skip
        for attention in attentions:
            options = (attention.rotary, attention.query_norm, attention.key_norm, attention.soft_cap, attention.window)
            if any(option is not None for option in options):
                raise ConversionError(
                    f"{where.capitalize()} of '{spec.name}' has rotary embeddings, norms of queries or keys, a soft cap or a "
                    "window, which edgelm writes for a decoder's own tokens only: not supported."
                )
    if any(layer.attention_post_norm or layer.feed_forward_post_norm for layer in spec.encoder.layers):
        raise ConversionError(f"The encoder of '{spec.name}' has norms after its blocks: not supported.")
    for what, attentions in (("caches", [layer.attention for layer in spec.decoder.layers]), ("source", crosses)):
        shapes = {(attention.kv_heads, attention.head_dim) for attention in attentions}
        if len(shapes) > 1:
            raise ConversionError(
                f"The layers of the decoder of '{spec.name}' have keys of different shapes, {sorted(shapes)} ({what}): "
                "not supported."
            )


def _encode_signature(spec: TransformerSpec, source: Source, count: int) -> Signature:
    return Signature(
        f"encode_{count}",
        count,
        tuple(_source_ports(source, count)),
        _bias_ports(source, count),
        "encode",
        source=_record(spec, source, count),
    )


def _source_ports(source: Source, count: int) -> Iterator[Port]:
    if source.audio is not None:
        yield Port(source.input, "float32", (1, count, source.audio.kernels[0].shape[1]), "frames")
        return
    yield Port(source.input, "int32", (1, count), "source_ids")
    mask = mask_input(source)
    if mask is not None:
        yield Port(mask, "int32", (1, count), "source_mask")


def _bias_ports(source: Source, count: int) -> tuple[Port, ...]:
    shape = (1, 1, 1, source_positions(source, count))
    return () if source.audio is not None else (Port(SOURCE_BIAS, "float32", shape, "raw"),)


def _record(spec: TransformerSpec, source: Source, count: int) -> CacheRecord:
    attention = spec.decoder.layers[0].cross_attention
    if attention is None:
        raise ValueError(f"The decoder of '{spec.name}' has no cross-attention.")
    names, positions = (SOURCE_KEYS, SOURCE_VALUES), source_positions(source, count)
    shape = (1, attention.kv_heads, positions, attention.head_dim)
    return CacheRecord(len(spec.decoder.layers), names, names, shape, "float32", positions)


def _decode_signature(spec: TransformerSpec, source: Source, count: int, length: int, rows: int) -> Signature:
    record = _record(spec, source, count)
    inputs = [Port(TOKENS, "int32", (rows, 1), "token_ids"), Port(POSITIONS, "int32", (1,), "positions")]
    inputs.extend(_bias_ports(source, count))
    scores = Port(LOGITS, "float32", (rows, 1, spec.vocabulary_size), "logits")
    attention = spec.decoder.layers[0].attention
    shape = (rows, attention.kv_heads, length, attention.head_dim)
    cache = CacheRecord(len(spec.decoder.layers), (KEYS, VALUES), (KEYS, VALUES), shape, "float32", length)
    name = f"decode_{count}" if rows == 1 else f"decode_{count}_x{rows}"
    return Signature(name, 1, tuple(inputs), (scores,), "decode", cache, record, rows)
