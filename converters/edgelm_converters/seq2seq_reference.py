"""What Keras itself scores, of a source and an answer: what an encoder-decoder's artifacts are held against.

Dimensions: ``B`` pairs, ``S`` source tokens or frames, ``n`` target tokens, ``M`` mel bands, ``V`` vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError
from edgelm_converters.causal_reference import as_scores
from edgelm_converters.keras_graph import ModelInput, model_inputs, pack_inputs
from edgelm_converters.spec import Source, TransformerSpec

__all__ = ["PairScores", "keras_pair_scores"]

PairScores = Callable[[NDArray[Any], NDArray[np.int32], NDArray[np.int32]], NDArray[np.float32]]

_HIDDEN = "decoder_sequence_output"  # of KerasHub's backbones


def keras_pair_scores(model: Any, spec: TransformerSpec) -> PairScores:
    """Return Keras's model as a function of sources and answers to the scores of each next token.

    It takes sources, int ids ``(B, S)`` or float32 frames ``(B, S, M)``; how many of each source's are real, int32 ``(B,)``;
    and target ids, int32 ``(B, n)``. It returns float32 ``(B, n, V)``. A model that sees its source's padding is asked once
    for each length, without any.

    A KerasHub backbone gives hidden states. BART's are scored by its token embedding, reversed, as ``BartSeq2SeqLM`` does it;
    T5's likewise, times ``1/sqrt(D)`` where the two share a table, as ``T5Seq2SeqLM`` does it; Whisper's by its token
    embedding, reversed, as OpenAI's model does it (KerasHub has no task for it). A model that ends in a softmax gives the
    logarithms of its probabilities: scores but for a constant.

    Args:
        model: The Keras model.
        spec: The same as a spec.

    Raises:
        ConversionError: The spec is no encoder-decoder; or, when called, the model has no output of that shape, or answers
            with NaN or infinity.
    """
    source = spec.source
    if source is None:
        raise ConversionError(f"'{spec.name}' reads no source: it is not asked for pairs.")
    entries = model_inputs(model)

    def score(sources: NDArray[Any], lengths: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        if source.mask != "none":
            return _ask(model, spec, _inputs(entries, spec, source, sources, lengths, targets), targets.shape[1])
        scores = np.zeros((*targets.shape, spec.vocabulary_size), np.float32)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            inputs = _inputs(entries, spec, source, sources[rows, :length], lengths[rows], targets[rows])
            scores[rows] = _ask(model, spec, inputs, targets.shape[1])
        return scores

    return score


def _inputs(
    entries: tuple[ModelInput, ...],
    spec: TransformerSpec,
    source: Source,
    sources: NDArray[Any],
    lengths: NDArray[np.int32],
    targets: NDArray[np.int32],
) -> dict[str, NDArray[Any]]:
    """Return the model's inputs by name, filled up to the lengths that it declares.

    Whatever is neither a source nor its mask nor the target hides the target's padding: none is hidden, since a causal
    decoder sees nothing behind a token.
    """
    real = np.arange(sources.shape[1]) < lengths[:, None]
    if source.mask == "nonzero":
        sources = np.where(real, sources, 0)
    known = {source.input: sources, source.mask_input: real, spec.token_input: targets}
    values = {}
    for entry in entries:
        value = known.get(entry.name)
        value = np.ones_like(targets) if value is None else value
        missing = (entry.shape[0] or 0) - value.shape[1] if entry.declared else 0
        if missing > 0:
            value = np.pad(value, ((0, 0), (0, missing), *((0, 0),) * (value.ndim - 2)))
        values[entry.name] = value.astype(entry.dtype)
    return values


def _ask(model: Any, spec: TransformerSpec, inputs: dict[str, NDArray[Any]], count: int) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        # Keras says that a softmax over one token is always 1, and that a layer (of KerasHub's own) takes no notice of a mask:
        # what the model computes is what is wanted here, whatever that is.
        warnings.filterwarnings("ignore", message="You are using a softmax over axis")
        warnings.filterwarnings("ignore", message=r"Layer '.*' \(of type .*\) was passed an input with a mask attached")
        result = model(pack_inputs(model, inputs), training=False)
        if isinstance(result, Mapping) and _HIDDEN in result:
            result = _scored(model, spec, result[_HIDDEN])
    results = list(result.values()) if isinstance(result, Mapping) else result
    outputs = [np.asarray(value) for value in (results if isinstance(results, (list, tuple)) else [results])]
    scores = next((value for value in outputs if value.ndim == 3 and value.shape[-1] == spec.vocabulary_size), None)
    if scores is None:
        shapes = ", ".join(str(list(value.shape)) for value in outputs)
        raise ConversionError(
            f"Keras's model gives {shapes}, and no score for each of its {spec.vocabulary_size:,} tokens."
        )
    scores = scores[:, :count].astype(np.float32)
    if not np.isfinite(scores).all():
        raise ConversionError("The Keras model itself answers with NaN or infinity on these inputs: check its weights.")
    return as_scores(scores)


def _scored(model: Any, spec: TransformerSpec, hidden: Any) -> Any:
    embedding = model.token_embedding
    if spec.family == "t5" and embedding.tie_weights:
        hidden = hidden * spec.width**-0.5
    return embedding(hidden, reverse=True)
