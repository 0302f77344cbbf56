"""Language models as TFLite files, written directly from a `TransformerSpec`, with the signatures of Google's LiteRT-LM.

For the longest cache these are ``prefill_{N}`` and ``decode``. For a shorter one of C positions they are
``cache_{C}_prefill_{N}`` and ``cache_{C}_decode``, and what gives the scores after each of N tokens is
``cache_{C}_verify_{N}`` for any cache. LiteRT-LM takes every signature whose name begins with ``prefill`` for one of its own,
and one called ``verify`` for its own way of speculative decoding: none of ours is called so.

All signatures share one copy of the weights, in the file and, where the runtime has a cache of packed weights, in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgelm.bundle.manifest import CacheRecord, Port, Signature
from edgelm.errors import ConversionError
from edgelm_converters.emit.quantize import check_finite, weight_recipe
from edgelm_converters.emit.tflite_cached import KEYS, LOGITS, POSITIONS, TOKENS, VALUES, build_cached
from edgelm_converters.emit.tflite_file import Model, write_model
from edgelm_converters.emit.tflite_graph import Graph, Weights
from edgelm_converters.emit.tflite_weights import Store
from edgelm_converters.spec import TransformerSpec

__all__ = ["default_caches", "default_prefill", "default_verify", "emit_tflite_decoder"]


_Kind = Literal["prefill", "decode", "verify"]

_SHORTEST_CACHE, _MOST_CACHES = 256, 4


def default_caches(context_length: int) -> tuple[int, ...]:
    """Return the cache lengths of a file: the context, a half of it and so on, down to 256, at most four.

    Attention reads all of a cache, used or not: with 15 million int8 weights a token takes 2.3, 2.6 and 3.0 ms with caches of
    128, 256 and 512. The four signatures of a further cache take 4 ms each to load, and 2 MB of memory once they have run.

    Raises:
        ConversionError: The context is shorter than 1.
    """
    if context_length < 1:
        raise ConversionError(f"A language model needs a context of at least 1 token, not {context_length}.")
    lengths = [context_length]
    while len(lengths) < _MOST_CACHES and lengths[-1] >= 2 * _SHORTEST_CACHE:
        lengths.append(lengths[-1] // 2)
    return tuple(sorted(lengths))


def default_prefill(context_length: int) -> tuple[int, ...]:
    """Return the numbers of tokens that a prompt is cut into.

    Two: a call costs as much as 12 of its tokens do (same model, int8), so that 16 take little longer than one, and 128 a
    quarter less for each token than 16.
    """
    return tuple(sorted({min(count, context_length) for count in (16, 128)}))


def default_verify(context_length: int) -> tuple[int, ...]:
    """Return the numbers of tokens whose scores are all computed in one call: what speculative decoding checks at once."""
    return (min(8, context_length),)


def emit_tflite_decoder(
    spec: TransformerSpec,
    path: Path,
    *,
    recipe: str,
    caches: tuple[int, ...],
    prefill: tuple[int, ...],
    verify: tuple[int, ...] = (),
) -> tuple[Signature, ...]:
    """Write a language model as a TFLite file; batch 1, caches float32 ``(1, K, T, A)``.

    Takes little more memory than the weights in the recipe's form. What a signature computes says
    `edgelm_converters.emit.tflite_cached.build_cached`.

    Args:
        spec: The model.
        path: The file to write. One that exists is replaced in place: give a path that no running program has opened.
        recipe: Any without calibrated ranges (`edgelm_converters.recipes`). float16 weights are computed with in float32,
            and so are those of ``weight_only_wi8_afp32``, which takes the most memory of all (`Store`); of 4 bits are the
            kernels whose inputs fill the blocks, embedding and head are int8 then (`edgelm_converters.emit.notes`).
        caches: Positions of each cache; the longest is the context length.
        prefill: Tokens of the signatures that fill the cache and give nothing else.
        verify: Tokens of the signatures that give the scores after each token.

    Returns:
        The signatures, by the cache's length, then by their tokens; a number of tokens above a cache's length has none.

    Raises:
        RecipeError: There is no such recipe, or its floats cannot hold the weights.
        ConversionError: It is no language model, a length makes no sense or is more than the model takes, or the file would
            be too large.
        ModelError: A weight is NaN or infinite.
    """
    chosen = weight_recipe(recipe)
    caches = tuple(sorted(set(caches)))
    _check(spec, caches, (*prefill, *verify))
    check_finite(spec)
    model = Model(description=f"{spec.name}, {recipe}, written by edgelm")
    store = Store(Weights(model), chosen)
    signatures = []
    for length in caches:
        own = length == caches[-1]
        for kind, count in _calls(length, prefill, verify):
            signature = _signature(spec, kind, count, length, own=own)
            graph = Graph(store.weights, signature.name)
            build_cached(graph, store, spec, count=count, length=length, longest=caches[-1], scores=kind != "prefill")
            signatures.append(signature)
    write_model(model, path)
    return tuple(signatures)


def _calls(length: int, prefill: Sequence[int], verify: Sequence[int]) -> list[tuple[_Kind, int]]:
    """Return the kinds of signatures for a cache with their tokens, by ascending tokens."""
    calls: list[tuple[_Kind, int]] = [("decode", 1)]
    calls.extend(("prefill", count) for count in set(prefill) if count <= length)
    calls.extend(("verify", count) for count in set(verify) if count <= length)
    return sorted(calls, key=lambda call: (call[1], call[0]))


def _check(spec: TransformerSpec, caches: tuple[int, ...], counts: tuple[int, ...]) -> None:
    if not spec.generates or spec.encoder.layers or spec.embeddings.segment is not None:
        raise ConversionError(f"The model '{spec.name}' is no language model that decodes from token ids alone.")
    for what, numbers in (("cache lengths", caches), ("numbers of tokens", counts)):
        if not numbers or min(numbers) < 1:
            raise ConversionError(
                f"A language model's TFLite file needs {what} of at least 1, and was given {numbers}."
            )
    positions = None if spec.embeddings.position is None else len(spec.embeddings.position)
    known = [limit for limit in (spec.max_length, positions) if limit is not None]
    if known and caches[-1] > min(known):
        raise ConversionError(
            f"The model '{spec.name}' has at most {min(known)} positions, not {caches[-1]}: give a shorter context."
        )
    shapes = {(layer.attention.kv_heads, layer.attention.head_dim) for layer in spec.decoder.layers}
    if len(shapes) > 1:
        raise ConversionError(
            f"The layers of '{spec.name}' have caches of different shapes, {sorted(shapes)}: not supported."
        )


def _signature(spec: TransformerSpec, kind: _Kind, count: int, length: int, *, own: bool) -> Signature:
    name = kind if kind == "decode" else f"{kind}_{count}"
    if kind == "verify" or not own:
        name = f"cache_{length}_{name}"
    inputs = (Port(TOKENS, "int32", (1, count), "token_ids"), Port(POSITIONS, "int32", (count,), "positions"))
    scores = Port(LOGITS, "float32", (1, count, spec.vocabulary_size), "logits")
    attention = spec.decoder.layers[0].attention
    shape = (1, attention.kv_heads, length, attention.head_dim)
    cache = CacheRecord(len(spec.decoder.layers), (KEYS, VALUES), (KEYS, VALUES), shape, "float32", length)
    return Signature(name, count, inputs, () if kind == "prefill" else (scores,), kind, cache)
