"""What Keras itself scores: the answers that a language model's artifacts are held against.

Dimensions: ``n`` tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError
from edgelm_converters.reference import Reference
from edgelm_converters.spec import TransformerSpec

__all__ = ["Scores", "as_scores", "keras_scores"]

Scores = Callable[[NDArray[np.int32]], NDArray[np.float32]]


def keras_scores(model: Any, reference: Reference, spec: TransformerSpec) -> Scores:
    """Return Keras's model as a function from ids ``(n,)`` to the scores of each next token, ``(n, V)``.

    A KerasHub backbone gives hidden states: its own token embedding, reversed, scores them, as in its task. A model that
    ends in a softmax gives the logarithms of its probabilities: scores but for a constant.

    Raises:
        ConversionError: When called: the model has no output of that shape, or answers with NaN or infinity.
    """
    vocabulary = spec.vocabulary_size
    port = reference.token_input

    def score(ids: NDArray[np.int32]) -> NDArray[np.float32]:
        # Two at least: Keras warns of a softmax over one. What comes after a token does not change its scores.
        length = spec.fixed_length or max(len(ids), 2)
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        real = (np.arange(length) < len(ids))[None].astype(np.int32)
        if port is None:
            raise ConversionError(f"The model '{spec.name}' has no single input of token ids to ask it with.")
        inputs = {entry.name: padded if entry.name == port.name else real for entry in reference.inputs}
        outputs = list(reference.run(inputs).values())
        scores = next((value for value in outputs if value.ndim == 3 and value.shape[-1] == vocabulary), None)
        if scores is None and hasattr(model, "token_embedding") and outputs[0].ndim == 3:
            scores = np.asarray(model.token_embedding(outputs[0], reverse=True))
        if scores is None:
            shapes = ", ".join(str(list(value.shape)) for value in outputs)
            raise ConversionError(f"Keras's model gives {shapes}, and no score for each of its {vocabulary:,} tokens.")
        rows = np.asarray(scores[0, : len(ids)], np.float32)
        if not np.isfinite(rows).all():
            raise ConversionError(
                "The Keras model itself answers with NaN or infinity on these inputs: check its weights."
            )
        return as_scores(rows)

    return score


def as_scores(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores ``(…, n, V)``: as they are, or the logarithms of what are probabilities already."""
    return np.log(np.maximum(rows, np.finfo(np.float32).tiny)) if _are_probabilities(rows) else rows


def _are_probabilities(rows: NDArray[np.float32]) -> bool:
    # Scores sum to 1 in each of several rows by chance once in a very long time, and are hardly all above 0.
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=-1), 1, atol=1e-3))
