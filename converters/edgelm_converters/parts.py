"""The parts of a model that a recipe can store in more bits than the others.

A layer has four: the projections into its attention (query, key and value, which the artifacts compute as one product), the
one out of it, and the two sides of its feed-forward; of a decoder that attends to a source, three more. Embeddings and head are
one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from edgelm_converters.emit.quantize import worth_quantizing
from edgelm_converters.spec import Embeddings, Float32, Linear, TokenHead, TransformerSpec

__all__ = ["Part", "parts_of", "widen"]

Bits = Literal[8, 16]


@dataclass(frozen=True)
class Part:
    """A piece of a model.

    Attributes:
        name: Such as ``decoder.3.feed_forward.down``.
        arrays: ``id()`` of its kernels and tables.
        size: Weights of all of them.
    """

    name: str
    arrays: frozenset[int]
    size: int


def parts_of(spec: TransformerSpec) -> tuple[Part, ...]:
    """Return the parts of a model that integers are worth for, in its order.

    What several pieces share (a tied head, ALBERT's layers) belongs to the first of them.
    """
    seen: set[int] = set()
    parts = []
    for name, arrays in _pieces(spec):
        own = {id(array): array for array in arrays if id(array) not in seen and worth_quantizing(array)}
        seen |= own.keys()
        if own:
            parts.append(Part(name, frozenset(own), sum(array.size for array in own.values())))
    return tuple(parts)


def _pieces(spec: TransformerSpec) -> Iterator[tuple[str, list[Float32]]]:
    yield "embeddings", _tables(spec.embeddings)
    if spec.source is not None and spec.source.embeddings is not None:
        yield "source", _tables(spec.source.embeddings)
    for stack, layers in (("encoder", spec.encoder.layers), ("decoder", spec.decoder.layers)):
        for number, layer in enumerate(layers):
            attention, block = layer.attention, layer.feed_forward
            yield f"{stack}.{number}.attention.in", _kernels(attention.query, attention.key, attention.value)
            yield f"{stack}.{number}.attention.out", _kernels(attention.output)
            if layer.cross_attention is not None:
                cross = layer.cross_attention
                yield f"{stack}.{number}.cross_attention.query", _kernels(cross.query)
                yield f"{stack}.{number}.cross_attention.source", _kernels(cross.key, cross.value)
                yield f"{stack}.{number}.cross_attention.out", _kernels(cross.output)
            yield f"{stack}.{number}.feed_forward.up", _kernels(block.up, block.gate)
            yield f"{stack}.{number}.feed_forward.down", _kernels(block.down)
    head = _kernels(*(layer.linear for layer in spec.head.layers))
    if spec.head.tokens is not None:
        head += [spec.head.tokens.table, *_kernels(spec.head.tokens.mixing)]
    yield "head", head


def _tables(embeddings: Embeddings) -> list[Float32]:
    tables = (embeddings.token, embeddings.position, embeddings.segment)
    return [table for table in tables if table is not None] + _kernels(embeddings.projection)


def _kernels(*linears: Linear | None) -> list[Float32]:
    return [linear.kernel for linear in linears if linear is not None]


def widen(spec: TransformerSpec, bits: Mapping[str, Bits]) -> TransformerSpec:
    """Return a model of which some parts are stored in no fewer bits than given.

    Args:
        spec: The model; its arrays stay the same objects.
        bits: By name of the part.

    Raises:
        KeyError: The model has no such part.
    """
    known = {part.name: part for part in parts_of(spec)}
    least: dict[int, Bits] = {array: count for name, count in bits.items() for array in known[name].arrays}

    def walk(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(walk(item) for item in value)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        changed = {entry.name: walk(getattr(value, entry.name)) for entry in fields(value)}
        table = _table(value)
        if table in least:
            changed["least_bits"] = max(changed["least_bits"], least[table])
        return replace(value, **changed)

    widened: TransformerSpec = walk(spec)
    return widened


def _table(value: object) -> int | None:
    """Return the ``id()`` of the array that a piece's `least_bits` is about."""
    if isinstance(value, Linear):
        return id(value.kernel)
    if isinstance(value, Embeddings):
        return id(value.token)
    return id(value.table) if isinstance(value, TokenHead) else None
