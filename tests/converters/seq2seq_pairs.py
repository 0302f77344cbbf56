"""Sources and answers to ask an encoder-decoder with, and its scores held to the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
from edgelm_converters.seq2seq_reference import keras_pair_scores
from edgelm_converters.spec import TransformerSpec
from numpy.typing import NDArray
from reference import forward
from seq2seq_models import FEED_FORWARD

__all__ = ["assert_scores", "make_pairs"]

# A float32 sum of n terms is off by some sqrt(n) roundings of eps/2 each, of values as large as the largest. Here a layer
# is nine such sums (n up to FEED_FORWARD), and a target passes four layers, a head and, at most, a softmax and its logarithm.
# The attention without a scale (T5's) makes scores of 10 and more, whose softmax multiplies what is off by them.
TOLERANCE = 5 * np.finfo(np.float32).eps / 2 * np.sqrt(FEED_FORWARD * 9 * 6)
UNSCALED = 10.0


def make_pairs(
    spec: TransformerSpec, source: int, target: int, seed: int = 0
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
    """Return three sources of up to `source` tokens or frames, how many of each are real, and ids ``(3, target)``."""
    assert spec.source is not None
    draw = np.random.default_rng(seed)
    targets = draw.integers(1, spec.vocabulary_size, (3, target)).astype(np.int32)
    if spec.source.audio is not None:
        bands = spec.source.audio.kernels[0].shape[1]
        frames = draw.standard_normal((3, source, bands)).astype(np.float32)
        return frames, np.full(3, source, np.int32), targets
    assert spec.source.embeddings is not None
    lengths = np.array([source, max(1, source // 2), max(1, source - 1)], np.int32)
    ids = draw.integers(1, len(spec.source.embeddings.token), (3, source)).astype(np.int32)
    ids[np.arange(source) >= lengths[:, None]] = 0
    return ids, lengths, targets


def assert_scores(model: Any, spec: TransformerSpec) -> None:
    """Hold Keras's scores to the oracle at several lengths; each row's mean is no part of them."""
    assert spec.source is not None
    scores = keras_pair_scores(model, spec)
    for source, target in ((9, 5), (6, 8), (1, 1)):
        sources, lengths, targets = make_pairs(spec, source, target)
        found = scores(sources, lengths, targets)
        assert found.shape == (3, target, spec.vocabulary_size)
        assert found.dtype == np.float32
        for row, length in enumerate(lengths):
            read = sources[row : row + 1] if spec.source.mask != "none" else sources[row : row + 1, :length]
            inputs = {spec.source.input: read, spec.token_input: targets[row : row + 1]}
            if spec.source.mask_input is not None:
                inputs[spec.source.mask_input] = (np.arange(source) < length)[None]
            expected = _centred(forward(spec, inputs)[0])
            bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            if spec.decoder.layers[0].attention.scale == 1.0:
                bound *= UNSCALED
            np.testing.assert_allclose(_centred(found[row]), expected, rtol=0, atol=bound)


def _centred(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(rows - rows.mean(axis=-1, keepdims=True))
