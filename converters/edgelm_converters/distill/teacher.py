"""What a model says of a batch, and what goes on inside it: a teacher, or a student that is measured.

Dimensions: ``B`` samples, ``n`` tokens, ``C`` classes or vocabulary, ``D`` width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelError
from edgelm_converters.distill.kinds import Kind
from edgelm_converters.distill.lessons import Batch, inputs_of
from edgelm_converters.reference import Reference
from edgelm_converters.spec import TransformerSpec

__all__ = ["Teacher", "read_teacher", "unread_teacher", "without_activation"]

Answers = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model that is asked.

    Attributes:
        spec: As it was read; None where no reader takes it.
        layers: Whose states are watched.
        watch: From a batch to what the model gives, by name: ``answer``, ``(B, C)`` or ``(B, n, C)``, before a softmax or
            sigmoid; ``state_0`` …, ``(B, n, D)``, after each of `layers`; ``query``, ``key`` and ``value`` of its last layer.
    """

    spec: TransformerSpec | None
    layers: tuple[int, ...]
    watch: Callable[[Batch], Answers]


def without_activation(spec: TransformerSpec) -> TransformerSpec:
    """Return the same model without the softmax or sigmoid at its end: losses are computed from scores."""
    if spec.head.output not in ("probabilities", "sigmoid"):
        return spec
    return dataclasses.replace(spec, head=dataclasses.replace(spec.head, output="logits"))


def read_teacher(spec: TransformerSpec, layers: tuple[int, ...] = (), *, relations: bool = False) -> Teacher:
    """Return a model that was read, as one that is asked.

    Args:
        spec: The model.
        layers: Whose states are watched.
        relations: Whether the last layer's queries, keys and values are.
    """
    from edgelm_converters.distill.watcher import Watcher

    plain = without_activation(spec)
    watcher = Watcher.of_spec(plain, layers, relations=relations)
    return Teacher(spec, layers, lambda batch: watcher.ask(inputs_of(plain, batch)))


def unread_teacher(reference: Reference, kind: Kind) -> Teacher:
    """Return a model that no reader takes, as one that is asked for its answers alone.

    Raises:
        ModelError: It takes more than token ids, a mask and segments.
    """
    roles = {"token_ids": "ids", "padding_mask": "real", "segment_ids": "segments"}
    strange = [port.name for port in reference.inputs if port.role not in roles]
    if strange:
        raise ModelError(f"The teacher takes '{strange[0]}', and a student is taught with token ids alone.")

    def watch(batch: Batch) -> Answers:
        inputs = {port.name: getattr(batch, roles[port.role]).astype(port.dtype) for port in reference.inputs}
        answer = next(iter(reference.run(inputs).values())).astype(np.float32)
        return {"answer": _scores(answer, kind)}

    return Teacher(None, (), watch)


def _scores(answer: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Return logits of an answer that may have gone through a softmax or a sigmoid."""
    positive = bool((answer >= 0).all())
    if kind == "classes" and positive and np.allclose(answer.sum(axis=-1), 1, atol=1e-3):
        answer = np.log(np.maximum(answer, np.finfo(np.float32).tiny))
    elif kind == "binary" and positive and (answer <= 1).all():
        inside = np.clip(answer, 1e-7, 1 - 1e-7)
        answer = np.log(inside / (1 - inside))
    return answer
