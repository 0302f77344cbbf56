"""How far a student is from its teacher, in `keras.ops`. Importing this module imports Keras.

Dimensions: ``B`` samples, ``n`` tokens, ``C`` classes or vocabulary, ``W`` width of a projection, ``R`` relation heads.
`real` is float32 ``(B, n)``: 1 where a token counts.
"""

from __future__ import annotations

import math
from typing import Any

import keras

__all__ = ["binary", "cross_entropy", "relations", "soft_labels", "states", "vectors"]

ops: Any = keras.ops  # whose functions are typed as if they might return None

_HIDDEN = -1e30


def soft_labels(teacher: Any, student: Any, temperature: float) -> Any:
    """Return ``T² KL(teacher || student)`` of the softmax of scores over `T`, without the last axis.

    The factor keeps the gradient's size where `T` changes (Hinton et al. 2015, section 2.1).
    """
    wanted = ops.log_softmax(teacher / temperature, axis=-1)
    found = ops.log_softmax(student / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(wanted) * (wanted - found), axis=-1)


def binary(teacher: Any, student: Any, temperature: float) -> Any:
    """Return the same of independent classes, of which `teacher` and `student` are the logits; their mean."""
    wanted = ops.sigmoid(teacher / temperature)
    return temperature**2 * ops.mean(
        _bernoulli(wanted, student / temperature) - _entropy(teacher / temperature), axis=-1
    )


def _entropy(logits: Any) -> Any:
    return _bernoulli(ops.sigmoid(logits), logits)


def _bernoulli(wanted: Any, logits: Any) -> Any:
    return ops.softplus(logits) - wanted * logits


def vectors(teacher: Any, student: Any) -> Any:
    """Return ``1 - cosine`` and the squared error as a share of the teacher's square, together, without the last axis."""
    dot, square, other = (
        ops.sum(a * b, axis=-1) for a, b in ((teacher, student), (teacher, teacher), (student, student))
    )
    cosine = dot * ops.rsqrt(ops.maximum(square * other, 1e-12))
    return 1 - cosine + ops.sum(ops.square(teacher - student), axis=-1) / ops.maximum(square, 1e-12)


def cross_entropy(labels: Any, scores: Any, *, independent: bool = False) -> tuple[Any, Any]:
    """Return the loss of labels int32, and 1 where a label is known (0 or more), both of the labels' shape.

    Args:
        labels: The class of each row of scores.
        scores: Logits.
        independent: Whether each class has a sigmoid of its own; one class alone is then yes or no.
    """
    known = ops.cast(labels >= 0, "float32")
    safe = ops.maximum(labels, 0)
    if not independent:
        chosen = ops.take_along_axis(ops.log_softmax(scores, axis=-1), safe[..., None], axis=-1)[..., 0]
        return -chosen * known, known
    one = scores.shape[-1] == 1
    wanted = ops.cast(safe[..., None], "float32") if one else ops.one_hot(safe, scores.shape[-1])
    return ops.mean(_bernoulli(wanted, scores), axis=-1) * known, known


def states(teacher: Any, student: Any, real: Any) -> Any:
    """Return the squared error of states ``(B, n, D)``, as a share of the teacher's square, over the tokens that count."""
    error = ops.sum(ops.mean(ops.square(teacher - student), axis=-1) * real)
    return error / ops.maximum(ops.sum(ops.mean(ops.square(teacher), axis=-1) * real), 1e-12)


def relations(teacher: Any, student: Any, real: Any, *, heads: int, causal: bool) -> Any:
    """Return ``KL(teacher || student)`` of how tokens relate: softmax of a projection's products with itself, a head.

    Args:
        teacher: Queries, keys or values, ``(B, n, W)``; the student's may be of another width.
        student: Likewise.
        real: Which tokens count.
        heads: ``R``, which divides both widths.
        causal: Whether a token relates to those before it alone.
    """
    length = ops.shape(teacher)[1]
    visible = real[:, None, None, :] > 0
    if causal:
        places = ops.arange(length)
        visible = ops.logical_and(visible, places[:, None] >= places[None, :])
    wanted, found = (_relation(projection, visible, heads) for projection in (teacher, student))
    divergence = ops.sum(ops.where(visible, ops.exp(wanted) * (wanted - found), 0.0), axis=-1)
    return ops.sum(ops.mean(divergence, axis=1) * real) / ops.maximum(ops.sum(real), 1.0)


def _relation(projection: Any, visible: Any, heads: int) -> Any:
    shape = ops.shape(projection)
    width = projection.shape[-1] // heads
    split = ops.swapaxes(ops.reshape(projection, (shape[0], shape[1], heads, width)), 1, 2)
    products = ops.matmul(split, ops.swapaxes(split, -1, -2)) / math.sqrt(width)
    return ops.log_softmax(ops.where(visible, products, _HIDDEN), axis=-1)
