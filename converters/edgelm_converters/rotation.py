"""Turns a language model's residual stream and its values into a basis in which no channel stands out.

A trained Transformer has a few channels that are hundreds of times as large as the others, and a first token with "massive
activations" in them (Sun et al. 2024, https://arxiv.org/abs/2402.17762). Where all activations of a token share one 8-bit
scale, as in XNNPACK, those channels leave the others two or three bits. A rotation spreads them over all channels (QuaRot,
Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456). Rotating what every layer reads and writes changes nothing in exact
arithmetic, since the normalisation does not see it, and it is free at run time, since it is multiplied into the weights.

What stands in the way, and how it is met:

- gamma and beta of a norm do not commute with a rotation: they go into the kernels that follow (`fold_layer`).
- A layer norm takes the mean off: the rotation leaves the vector of ones where it is, and so every mean.
- Behind the last norm of a tied head there is no kernel of its own for gamma: turned, gamma is a matrix ``(D, D)``. Its part
  that is not a multiple of the identity becomes `TokenHead.mixing`, of which 8 bits are enough.
- The channels inside a feed-forward are behind an activation, which no rotation passes. A token is most uneven there: its
  largest is 10 to 28 times its root mean square, 3.2 times in the rotated stream (SmolLM2-135M). Runs of 32 of them are turned
  by a Hadamard matrix at run time (`turn_hidden`).
- A norm of what a layer adds, or one of the residual stream itself, lies between two rotations: such a model is left as it is.

Dimensions: ``D`` width, ``H`` heads, ``K`` key/value heads, ``A`` width of one head, ``V`` vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.spec import (
    Attention,
    Embeddings,
    FeedForward,
    Float32,
    Layer,
    Linear,
    Norm,
    TransformerSpec,
)

__all__ = [
    "fold_layer",
    "hadamard",
    "obstacle",
    "rotate_ends",
    "rotate_layer",
    "rotate_values",
    "rotation",
    "turn_hidden",
]

_SEED = 7  # the same model gives the same file

Float64 = NDArray[np.float64]


def rotation(size: int, *, seed: int = _SEED) -> Float64:
    """Return a random orthogonal matrix ``(size, size)`` that leaves the vector of ones where it is.

    Drawn evenly from all of them (Haar measure): no sizes are excluded, as they are where it is made of Hadamard matrices.
    """
    generator = np.random.default_rng(seed)
    basis = np.eye(size)
    basis[:, 0] = 1.0
    basis, _ = np.linalg.qr(basis)  # its first column is the ones', up to a sign
    drawn, triangle = np.linalg.qr(generator.standard_normal((size - 1, size - 1)))
    inner = np.eye(size)
    inner[1:, 1:] = drawn * np.sign(np.diagonal(triangle))
    turned: Float64 = basis @ inner @ basis.T
    return turned


def obstacle(spec: TransformerSpec) -> str | None:
    """Return why a language model's residual stream cannot be rotated, None where it can."""
    layers = spec.decoder.layers
    if any(layer.norm_placement == "post" for layer in layers):
        return "its norms are on the residual stream itself"
    if any(layer.attention_post_norm is not None or layer.feed_forward_post_norm is not None for layer in layers):
        return "what its layers add is normalised"
    if spec.embeddings.norm is not None and spec.embeddings.projection is None:
        return "its embeddings are normalised"
    return None


def fold_layer(layer: Layer) -> Layer:
    """Return a layer that computes the same, whose kernels hold the gammas and betas before them, and the scale of the scores.

    Every norm in front of a kernel then only normalises, and what an emitter stores is what the spec holds, step for step.
    """
    attention = _fold_scale(layer.attention)
    if layer.norm_placement == "post":
        return replace(layer, attention=attention)
    block = layer.feed_forward
    before, between = layer.attention_norm, layer.feed_forward_norm
    query, key, value = (_after(before, linear) for linear in (attention.query, attention.key, attention.value))
    up, gate = _after(between, block.up), None if block.gate is None else _after(between, block.gate)
    return replace(
        layer,
        attention=replace(attention, query=query, key=key, value=value),
        attention_norm=_plain(before),
        feed_forward=replace(block, up=up, gate=gate),
        feed_forward_norm=_plain(between),
    )


def rotate_layer(layer: Layer, turn: Float32) -> Layer:
    """Return a layer that computes the same in a rotated residual stream.

    Args:
        layer: As `fold_layer` gives it, with its norms before its kernels.
        turn: ``(D, D)``, as `rotation` gives it.
    """
    attention, block = layer.attention, layer.feed_forward
    query, key, value = (_reads(linear, turn) for linear in (attention.query, attention.key, attention.value))
    up, gate = _reads(block.up, turn), None if block.gate is None else _reads(block.gate, turn)
    return replace(
        layer,
        attention=replace(attention, query=query, key=key, value=value, output=_writes(attention.output, turn)),
        feed_forward=replace(block, up=up, down=_writes(block.down, turn), gate=gate),
    )


def rotate_ends(spec: TransformerSpec, turn: Float32) -> TransformerSpec:
    """Return a model whose embeddings and head are those of a rotated residual stream. Its layers are to be rotated too.

    A head that shares the embedding's table goes on sharing it. One of its own takes up the last norm's gamma and beta.
    """
    head, final = spec.head.tokens, spec.decoder.final_norm
    embeddings = _rotate_embeddings(spec.embeddings, turn)
    if head is not None and head.table is spec.embeddings.token:
        head = replace(head, table=embeddings.token)
        if final is not None:
            final, mixing = _mix(final, turn, f"{head.name}/mixing")
            head = replace(head, mixing=mixing)
    elif head is not None:
        table, bias = head.table, head.bias
        if final is not None:
            if final.beta is not None:
                shift = table @ final.beta
                bias = shift if bias is None else bias + shift
            table, final = table * final.gamma, _plain(final)
        head = replace(head, table=table @ turn, bias=bias)
    decoder = replace(spec.decoder, final_norm=final)
    return replace(spec, embeddings=embeddings, decoder=decoder, head=replace(spec.head, tokens=head))


def rotate_values(attention: Attention) -> Attention:
    """Return an attention that computes the same with rotated values: each head's, undone by the output's kernel."""
    width = attention.head_dim
    turn = rotation(width).astype(np.float32)
    value, output = attention.value, attention.output

    def per_head(array: Float32) -> Float32:
        turned: Float32 = (array.reshape(*array.shape[:-1], -1, width) @ turn).reshape(array.shape)
        return turned

    bias = None if value.bias is None else per_head(value.bias)
    kernel = np.ascontiguousarray(per_head(output.kernel.T).T)
    return replace(
        attention,
        value=replace(value, kernel=per_head(value.kernel), bias=bias),
        output=replace(output, kernel=kernel),
    )


def hadamard(size: int) -> Float32:
    """Return the Hadamard matrix ``(size, size)``, orthogonal and symmetric, of a size that is a power of 2."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.sqrt(np.float32(size))
    return matrix


def turn_hidden(block: FeedForward, turn: Float32) -> FeedForward:
    """Return a feed-forward that computes the same, with each run of its inner channels turned before the second kernel.

    Args:
        block: Its inner width is a multiple of b.
        turn: ``(b, b)``, orthogonal.
    """
    kernel = block.down.kernel
    runs = kernel.reshape(-1, len(turn), kernel.shape[1])
    return replace(block, down=replace(block.down, kernel=(turn.T @ runs).reshape(kernel.shape)), turn=turn)


def _plain(norm: Norm) -> Norm:
    return replace(norm, gamma=np.ones_like(norm.gamma), beta=None)


def _after(norm: Norm, linear: Linear) -> Linear:
    """Return what follows a norm with its gamma and beta inside."""
    bias = linear.bias
    if norm.beta is not None:
        shift = norm.beta @ linear.kernel
        bias = shift if bias is None else bias + shift
    return replace(linear, kernel=norm.gamma[:, None] * linear.kernel, bias=bias)


def _fold_scale(attention: Attention) -> Attention:
    """Return an attention whose scores are multiplied with 1; of ``cap * tanh(scale / cap * x)`` the inner factor is 1."""
    if attention.query_norm is not None:
        return attention  # a norm takes every factor of the query off again
    left = 1.0 if attention.soft_cap is None else attention.soft_cap
    factor = np.float32(attention.scale / left)
    query = attention.query
    bias = None if query.bias is None else query.bias * factor
    return replace(attention, query=replace(query, kernel=query.kernel * factor, bias=bias), scale=left)


def _reads(linear: Linear, turn: Float32) -> Linear:
    return replace(linear, kernel=turn.T @ linear.kernel)


def _writes(linear: Linear, turn: Float32) -> Linear:
    bias = None if linear.bias is None else linear.bias @ turn
    return replace(linear, kernel=linear.kernel @ turn, bias=bias)


def _rotate_embeddings(parts: Embeddings, turn: Float32) -> Embeddings:
    if parts.projection is not None:
        return replace(parts, projection=_writes(parts.projection, turn))
    position = None if parts.position is None else parts.position @ turn
    return replace(parts, token=parts.token @ turn, position=position)


def _mix(final: Norm, turn: Float32, name: str) -> tuple[Norm, Linear | None]:
    """Return the last norm and the mixing that together are ``turn^T diag(gamma) turn``, and beta turned.

    The norm takes the mean of gamma: what is left is small, and so are the steps in which it is stored.
    """
    gamma = final.gamma.astype(np.float64)
    middle, size = float(gamma.mean()), float(np.sqrt(np.square(gamma).mean()))
    middle = middle if abs(middle) > size / 10 else size  # gammas of both signs: their mean says nothing
    norm = replace(final, gamma=np.full_like(final.gamma, middle), beta=None)
    bias = None if final.beta is None else final.beta @ turn
    if bias is None and np.allclose(gamma, middle, rtol=1e-6, atol=0.0):
        return norm, None
    exact = turn.astype(np.float64)
    kernel = (exact.T * (gamma / middle - 1.0)) @ exact
    return norm, Linear(name, kernel.astype(np.float32), bias, least_bits=8)
