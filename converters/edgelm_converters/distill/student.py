"""A smaller student, cut out of its teacher: layers, channels, heads and neurons that carry most.

What is kept is a part of the teacher as it is. Channels are those with the largest variance in the token table, the same in
every layer, since the residual stream joins them; heads and neurons are those whose output kernels are largest; layers are
evenly spaced and end with the last. Dimensions: as in `edgelm_converters.spec`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError, unknown_name
from edgelm_converters.spec import (
    Attention,
    Embeddings,
    FeedForward,
    Float32,
    Head,
    HeadLayer,
    Layer,
    Linear,
    Norm,
    Stack,
    TransformerSpec,
)

__all__ = ["Shape", "cut_student", "layers_of_teacher", "read_shape"]

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Shape:
    """The size of a student; None keeps what the teacher has.

    Attributes:
        layers: Number of layers.
        width: ``D``.
        heads: ``H``; each stays as wide as the teacher's. Key/value heads are removed with the groups that read them.
        ffn: ``F``.
    """

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    ffn: int | None = None


def read_shape(text: str) -> Shape:
    """Read ``layers=2,width=128,heads=4,ffn=512``; each may be left out.

    Raises:
        RecipeError: It is not written so.
    """
    names = [field.name for field in dataclasses.fields(Shape)]
    found: dict[str, int] = {}
    for entry in text.split(","):
        name, _, value = (part.strip() for part in entry.partition("="))
        if name not in names:
            raise RecipeError(unknown_name("dimension of a student", name, names))
        if not value.isdecimal() or int(value) < 1:
            raise RecipeError(f"The student's {name} is '{value}': give a whole number, such as {name}=4.")
        found[name] = int(value)
    return Shape(**found)


def layers_of_teacher(student: int, teacher: int) -> list[int]:
    """Return which of the teacher's layers each of the student's stands for: evenly spaced, the last one among them.

    >>> layers_of_teacher(2, 6)
    [2, 5]
    """
    return [round((index + 1) * teacher / student) - 1 for index in range(student)]


def cut_student(teacher: TransformerSpec, shape: Shape) -> TransformerSpec:
    """Return a smaller model, made of parts of its teacher.

    Where the output is the last layer's vector itself, a dense layer makes it as wide as the teacher's again, so that the two
    models' vectors can be compared.

    Raises:
        RecipeError: The student would be larger than its teacher somewhere, or its heads do not divide.
    """
    stack = teacher.decoder if teacher.decoder.layers else teacher.encoder
    first = stack.layers[0]
    bounds = {
        "layers": len(stack.layers),
        "width": teacher.width,
        "heads": min(layer.attention.heads for layer in stack.layers),
        "ffn": min(layer.feed_forward.up.kernel.shape[1] for layer in stack.layers),
    }
    for name, bound in bounds.items():
        asked = getattr(shape, name)
        if asked is not None and asked > bound:
            raise RecipeError(
                f"The student's {name} is {asked}, and the teacher has {bound}: it is cut out of its teacher, and cannot be "
                "larger. Give a model of your own as a .keras file with --student."
            )
    group = first.attention.heads // first.attention.kv_heads
    if shape.heads is not None and shape.heads % group:
        raise RecipeError(
            f"The student's heads are {shape.heads}, and {group} of the teacher's share each key and value: give a multiple."
        )
    kept = _channels(teacher, shape.width)
    chosen = [stack.layers[index] for index in layers_of_teacher(shape.layers or len(stack.layers), len(stack.layers))]
    cut = {id(layer): _cut_layer(layer, kept, shape) for layer in chosen}  # a shared layer stays one
    layers = tuple(cut[id(layer)] for layer in chosen)
    smaller = Stack(layers, _norm(stack.final_norm, kept))
    embeddings = _cut_embeddings(teacher.embeddings, kept)
    student = dataclasses.replace(teacher, embeddings=embeddings, head=_cut_head(teacher, embeddings, kept))
    if teacher.decoder.layers:
        return dataclasses.replace(student, decoder=smaller)
    return dataclasses.replace(student, encoder=smaller)


def _channels(teacher: TransformerSpec, width: int | None) -> Indices | None:
    """Return the channels that stay; None for all."""
    if width is None or width == teacher.width:
        return None
    parts = teacher.embeddings
    table = parts.token if parts.projection is None else parts.token @ parts.projection.kernel
    return np.sort(np.argsort(-table.var(axis=0), kind="stable")[:width])


def _cut_embeddings(parts: Embeddings, kept: Indices | None) -> Embeddings:
    if kept is None:
        return parts
    if parts.projection is not None:
        return dataclasses.replace(parts, projection=_outputs(parts.projection, kept))
    return dataclasses.replace(
        parts,
        token=_take(parts.token, kept, axis=1),
        position=None if parts.position is None else _take(parts.position, kept, axis=1),
        segment=None if parts.segment is None else _take(parts.segment, kept, axis=1),
        norm=_norm(parts.norm, kept),
    )


def _cut_head(teacher: TransformerSpec, embeddings: Embeddings, kept: Indices | None) -> Head:
    head = teacher.head
    if kept is None:
        return head
    if head.tokens is not None:
        tied = head.tokens.table is teacher.embeddings.token
        table = embeddings.token if tied else _take(head.tokens.table, kept, axis=1)
        return dataclasses.replace(head, tokens=dataclasses.replace(head.tokens, table=table))
    if not head.layers:
        widen = Linear("student/widen", np.eye(teacher.width, dtype=np.float32)[kept], None)
        return dataclasses.replace(head, layers=(HeadLayer(widen, "linear"),))
    first = head.layers[0]
    layers = (dataclasses.replace(first, linear=_inputs(first.linear, kept)), *head.layers[1:])
    return dataclasses.replace(head, layers=layers)


def _cut_layer(layer: Layer, kept: Indices | None, shape: Shape) -> Layer:
    return dataclasses.replace(
        layer,
        attention=_cut_attention(layer.attention, kept, shape.heads),
        feed_forward=_cut_feed_forward(layer.feed_forward, kept, shape.ffn),
        attention_norm=_cut_norm(layer.attention_norm, kept),
        feed_forward_norm=_cut_norm(layer.feed_forward_norm, kept),
        attention_post_norm=_norm(layer.attention_post_norm, kept),
        feed_forward_post_norm=_norm(layer.feed_forward_post_norm, kept),
    )


def _cut_attention(attention: Attention, kept: Indices | None, heads: int | None) -> Attention:
    if heads is not None and heads < attention.heads:
        A, group = attention.head_dim, attention.heads // attention.kv_heads
        sizes = np.square(attention.output.kernel).reshape(attention.kv_heads, -1).sum(axis=1)
        groups = np.sort(np.argsort(-sizes, kind="stable")[: heads // group])
        read = _runs(groups, group * A)
        attention = dataclasses.replace(
            attention,
            heads=heads,
            kv_heads=len(groups),
            query=_outputs(attention.query, read),
            key=_outputs(attention.key, _runs(groups, A)),
            value=_outputs(attention.value, _runs(groups, A)),
            output=_inputs(attention.output, read),
        )
    if kept is None:
        return attention
    return dataclasses.replace(
        attention,
        query=_inputs(attention.query, kept),
        key=_inputs(attention.key, kept),
        value=_inputs(attention.value, kept),
        output=_outputs(attention.output, kept),
    )


def _cut_feed_forward(block: FeedForward, kept: Indices | None, neurons: int | None) -> FeedForward:
    if neurons is not None and neurons < len(block.down.kernel):
        sizes = np.linalg.norm(block.down.kernel, axis=1) * np.linalg.norm(block.up.kernel, axis=0)
        chosen = np.sort(np.argsort(-sizes, kind="stable")[:neurons])
        gate = None if block.gate is None else _outputs(block.gate, chosen)
        block = dataclasses.replace(block, up=_outputs(block.up, chosen), gate=gate, down=_inputs(block.down, chosen))
    if kept is None:
        return block
    gate = None if block.gate is None else _inputs(block.gate, kept)
    return dataclasses.replace(block, up=_inputs(block.up, kept), gate=gate, down=_outputs(block.down, kept))


def _runs(groups: Indices, size: int) -> Indices:
    return (groups[:, None] * size + np.arange(size)).ravel()


def _take(array: Float32, kept: Indices, *, axis: int) -> Float32:
    return np.ascontiguousarray(np.take(array, kept, axis=axis))


def _inputs(linear: Linear, kept: Indices) -> Linear:
    return dataclasses.replace(linear, kernel=_take(linear.kernel, kept, axis=0))


def _outputs(linear: Linear, kept: Indices) -> Linear:
    bias = None if linear.bias is None else _take(linear.bias, kept, axis=0)
    return dataclasses.replace(linear, kernel=_take(linear.kernel, kept, axis=1), bias=bias)


def _norm(norm: Norm | None, kept: Indices | None) -> Norm | None:
    return None if norm is None else _cut_norm(norm, kept)


def _cut_norm(norm: Norm, kept: Indices | None) -> Norm:
    if kept is None:
        return norm
    beta = None if norm.beta is None else _take(norm.beta, kept, axis=0)
    return dataclasses.replace(norm, gamma=_take(norm.gamma, kept, axis=0), beta=beta)
