"""Text that a language model writes itself: what its weights are rounded by where the user gives no text.

Sampled as it is trained to write, its own text has the activations that matter (LLM-QAT, Liu et al. 2023,
https://arxiv.org/abs/2305.17888); random ids have others.

Dimensions: ``B`` sequences that are written at once, ``T`` tokens of each, ``D`` width, ``H`` heads, ``K`` key/value heads,
``A`` width of one head, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgelm_converters.activations import (
    Ids,
    add_attention,
    add_feed_forward,
    apply,
    cap_scores,
    embed,
    hidden,
    placed,
    scores_of,
    seen_by,
    softmax,
)
from edgelm_converters.spec import Attention, Float32, TransformerSpec

__all__ = ["write_text"]

_SEED = 11


def write_text(
    spec: TransformerSpec,
    *,
    sequences: int = 32,
    length: int = 128,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Ids, ...]:
    """Return sequences that the model samples, each after a first token drawn evenly from its vocabulary.

    All are written at once, so that the weights are read once for a token of each: 135 million of them take some 20 seconds.

    Args:
        spec: A language model.
        sequences: B.
        length: T; fewer where the model has fewer positions.
        tick: Called with the tokens written of each, and T.

    Returns:
        int32 ``(T,)`` each.
    """
    length = min(length, spec.max_length or length)
    generator = np.random.default_rng(_SEED)
    written = np.empty((sequences, length), np.int32)
    written[:, 0] = generator.integers(0, spec.vocabulary_size, sequences)
    caches = [_Cache(layer.attention, sequences, length) for layer in spec.decoder.layers]
    for place in range(length - 1):
        x = embed(spec, [written[row, place : place + 1] for row in range(sequences)], start=place)
        for layer, cache in zip(spec.decoder.layers, caches, strict=True):
            mixed = cache.mix(seen_by(layer, layer.attention_norm, x), place)
            x = add_attention(layer, x, mixed)
            x = add_feed_forward(layer, x, hidden(layer.feed_forward, seen_by(layer, layer.feed_forward_norm, x)))
        written[:, place + 1] = _sample(scores_of(spec, x), generator)
        tick(place + 2, length)
    return tuple(written)


class _Cache:
    """Keys and values of one layer, for all sequences: ``(B, K, T, A)``."""

    def __init__(self, attention: Attention, sequences: int, length: int) -> None:
        self._attention = attention
        shape = (sequences, attention.kv_heads, length, attention.head_dim)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def mix(self, seen: Float32, place: int) -> Float32:
        """Return what the output kernel sees of one more token of each sequence, ``(B, H*A)``."""
        attention = self._attention

        def heads(rows: Float32) -> Float32:
            return rows.reshape(len(rows), -1, 1, attention.head_dim)

        query = placed(attention, heads(apply(attention.query, seen)), attention.query_norm, place)
        self._keys[:, :, place : place + 1] = placed(
            attention, heads(apply(attention.key, seen)), attention.key_norm, place
        )
        self._values[:, :, place : place + 1] = heads(apply(attention.value, seen))
        first = 0 if attention.window is None else max(0, place + 1 - attention.window)
        keys, values = self._keys[:, :, first : place + 1], self._values[:, :, first : place + 1]
        query = query.reshape(len(seen), attention.kv_heads, -1, attention.head_dim)
        scores = query @ keys.swapaxes(2, 3) * np.float32(attention.scale)
        weights = softmax(cap_scores(attention.soft_cap, scores))
        return (weights @ values).reshape(len(seen), -1)


def _sample(scores: Float32, generator: np.random.Generator) -> Ids:
    """Draw a token of each row ``(V,)`` by its probability: the largest score with Gumbel noise."""
    noise = -np.log(-np.log(np.maximum(generator.random(scores.shape, np.float32), np.float32(1e-30))))
    drawn: Ids = (scores + noise).argmax(axis=-1).astype(np.int32)
    return drawn
