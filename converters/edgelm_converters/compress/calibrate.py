"""Calibration activations of an encoder or a language model, layer by layer, in chunks that bound the memory.

Two streams run side by side: `Chunk.wanted`, what the original model computes, and `Chunk.x`, what the smaller one does.

Dimensions: ``n`` tokens of a chunk, ``D`` width, ``I`` inputs of the kernel that ends a half of a layer (``H*A`` or ``F``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InputError
from edgelm_converters.activations import add_attention, add_feed_forward, embed, hidden, mixed_values, seen_by
from edgelm_converters.spec import Float32, Layer, Linear, Norm, Stack, TransformerSpec

__all__ = [
    "HALVES",
    "Chunk",
    "Half",
    "add_half",
    "calibration_chunks",
    "half_input",
    "last_linear",
    "layer_norms",
    "seen_by_half",
    "stack_of",
    "with_last",
    "with_layers",
]

Ids = NDArray[np.int32]
Half = Literal["attention", "feed_forward"]
HALVES: tuple[Half, Half] = ("attention", "feed_forward")

_ENOUGH = 16_384  # tokens; how it was chosen says `edgelm_converters.compress.correction`
_ROWS = 1024  # tokens of a chunk: its widest activations are then some 12 MB for 3,072 neurons


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some sequences on their way through the layers.

    Attributes:
        lengths: Tokens of each sequence.
        wanted: The original model's residual stream, float32 ``(n, D)``.
        x: The smaller model's, float32 ``(n, D)``; the same array where nothing has changed yet.
    """

    lengths: tuple[int, ...]
    wanted: Float32
    x: Float32


def calibration_chunks(
    spec: TransformerSpec, samples: Sequence[Ids], *, pad_id: int = 0, tokens: int = _ENOUGH
) -> list[Chunk]:
    """Return embedded samples, spread evenly over all of them where fewer are enough: files are often sorted by class.

    Args:
        spec: The model.
        samples: int32 ``(n,)`` each, without padding; segment ids are 0. One is cut to what the model takes.
        pad_id: Fills samples up where the model has a `TransformerSpec.fixed_length`, and therefore sees its padding.
        tokens: About how many are used.

    Raises:
        InputError: There is no sample, or one holds an id outside of the vocabulary.
    """
    prepared = [ids for ids in (_fitted(spec, np.asarray(sample), pad_id) for sample in samples) if len(ids)]
    if not prepared:
        raise InputError(
            "The calibration data hold no token: pruning needs some texts of the kind that the model is for."
        )
    for ids in prepared:
        if ids.min() < 0 or ids.max() >= spec.vocabulary_size:
            raise InputError(
                f"The calibration data hold the token id {int(max(ids.max(), -ids.min()))}, and '{spec.name}' knows "
                f"{spec.vocabulary_size}: encode them with the model's own tokenizer."
            )
    total = sum(map(len, prepared))
    step = max(1.0, total / tokens)
    chosen = [prepared[int(number * step)] for number in range(int(np.ceil(len(prepared) / step)))]
    return [_embedded(spec, group) for group in _grouped(chosen)]


def stack_of(spec: TransformerSpec) -> Stack:
    """Return the layers of a model, whichever it has."""
    return spec.encoder if spec.encoder.layers else spec.decoder


def with_layers(spec: TransformerSpec, layers: Sequence[Layer]) -> TransformerSpec:
    """Return a model with other layers in place of its own."""
    stack = replace(stack_of(spec), layers=tuple(layers))
    return replace(spec, encoder=stack) if spec.encoder.layers else replace(spec, decoder=stack)


def layer_norms(layer: Layer, half: Half) -> tuple[Norm, Norm | None]:
    """Return a half's norm, and the second one on what it adds."""
    if half == "attention":
        return layer.attention_norm, layer.attention_post_norm
    return layer.feed_forward_norm, layer.feed_forward_post_norm


def last_linear(layer: Layer, half: Half) -> Linear:
    """Return the kernel whose output a half adds to the residual stream."""
    return layer.attention.output if half == "attention" else layer.feed_forward.down


def with_last(layer: Layer, half: Half, linear: Linear) -> Layer:
    """Return a layer with another such kernel."""
    if half == "attention":
        return replace(layer, attention=replace(layer.attention, output=linear))
    return replace(layer, feed_forward=replace(layer.feed_forward, down=linear))


def seen_by_half(layer: Layer, half: Half, x: Float32) -> Float32:
    """Return what the first kernels of a half see of the residual stream ``(n, D)``."""
    return seen_by(layer, layer_norms(layer, half)[0], x)


def half_input(layer: Layer, half: Half, x: Float32, lengths: Sequence[int]) -> Float32:
    """Return what the last kernel of a half sees, float32 ``(n, I)``."""
    seen = seen_by_half(layer, half, x)
    return mixed_values(layer.attention, seen, lengths) if half == "attention" else hidden(layer.feed_forward, seen)


def add_half(layer: Layer, half: Half, x: Float32, inner: Float32) -> Float32:
    """Return the residual stream ``(n, D)`` after a half, of whose last kernel `inner` is the input."""
    return add_attention(layer, x, inner) if half == "attention" else add_feed_forward(layer, x, inner)


def _fitted(spec: TransformerSpec, ids: NDArray[np.int32], pad_id: int) -> Ids:
    if spec.mask == "nonzero":
        ids = ids[: int(np.flatnonzero(ids)[-1]) + 1 if ids.any() else 0]
    length = spec.fixed_length
    if length is not None and len(ids) < length:
        ids = np.concatenate([ids, np.full(length - len(ids), pad_id, np.int32)])
    limits = (length, spec.max_length, None if spec.embeddings.position is None else len(spec.embeddings.position))
    known = [limit for limit in limits if limit is not None]
    return ids[: min(known)].astype(np.int32) if known else ids.astype(np.int32)


def _grouped(sequences: Sequence[Ids]) -> Iterator[list[Ids]]:
    group: list[Ids] = []
    for ids in sequences:
        if group and sum(map(len, group)) + len(ids) > _ROWS:
            yield group
            group = []
        group.append(ids)
    yield group


def _embedded(spec: TransformerSpec, sequences: Sequence[Ids]) -> Chunk:
    parts = spec.embeddings
    if parts.segment is not None:  # every token is of segment 0, whose row then belongs to what is added anyway
        row: Float32 = parts.segment[0]
        if parts.position is not None:
            parts = replace(parts, position=parts.position + row, segment=None)
        else:
            parts = replace(
                parts, token=parts.token * np.float32(parts.token_scale) + row, token_scale=1.0, segment=None
            )
        spec = replace(spec, embeddings=parts)
    x = embed(spec, sequences)
    return Chunk(tuple(map(len, sequences)), x, x)
