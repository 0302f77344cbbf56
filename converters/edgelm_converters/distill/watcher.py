"""The Keras side of watching and of training. Importing this module imports Keras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from edgelm_converters.distill import losses
from edgelm_converters.distill.kinds import Kind
from edgelm_converters.distill.settings import Training
from edgelm_converters.keras_model.forward import Taps
from edgelm_converters.keras_model.layer import Transformer
from edgelm_converters.keras_model.structure import flatten
from edgelm_converters.spec import TransformerSpec

__all__ = ["Pupil", "Watcher", "relation_heads"]

ops: Any = keras.ops  # whose functions are typed as if they might return None

_PARTS = ("query", "key", "value")


class Watcher(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A model whose answer and inside are outputs by name, as `edgelm_converters.distill.teacher.Teacher.watch` has them."""

    def __init__(self, transformer: Transformer, layers: Sequence[int], *, relations: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self._layers_watched = tuple(layers)
        self._relations = relations
        self.built = True

    @classmethod
    def of_spec(cls, spec: TransformerSpec, layers: Sequence[int], *, relations: bool) -> Watcher:
        """Return the watcher of a spec."""
        watcher = cls(layer_of(spec), layers, relations=relations)
        compiled: Any = watcher  # Keras takes more than its types say
        compiled.compile(jit_compile=False)  # XLA would compile anew for each length
        return watcher

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return what is watched."""
        del training
        answer, taps = self.transformer.watched(inputs)
        return {"answer": answer, **watched(taps, self._layers_watched, relations=self._relations)}

    def ask(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return it as arrays."""
        found = self.predict_on_batch(dict(inputs))
        return {name: np.asarray(value, np.float32) for name, value in found.items()}


class Pupil(keras.Model):  # type: ignore[misc]
    """A student in training: its loss is how far it is from what its teacher said.

    Args:
        spec: The student, without the softmax or sigmoid at its end.
        kind: What its answers are.
        widths: Of the teacher's states that its own layers, one after the other, are compared with; empty without.
        heads: Of the relations of queries, keys and values; empty without.
        training: Weights of the losses.
    """

    def __init__(
        self, spec: TransformerSpec, kind: Kind, widths: Sequence[int], heads: Sequence[int], training: Training
    ) -> None:
        super().__init__()
        self._spec, self._kind, self._heads, self._training = spec, kind, tuple(heads), training
        self.transformer = layer_of(spec)
        self.projections = [self._projection(spec.width, width, number) for number, width in enumerate(widths)]
        self._causal = bool(spec.decoder.layers)
        self._recipe = training.rounding(spec)
        self.built = True

    def _projection(self, width: int, wanted: int, number: int) -> Any:
        weight = self.add_weight(shape=(width, wanted), name=f"projection_{number}", initializer="zeros")
        if width == wanted:
            weight.assign(np.eye(width, dtype=np.float32))
        else:
            generator = np.random.default_rng((self._training.seed, number))
            weight.assign(generator.standard_normal((width, wanted)).astype(np.float32) / math.sqrt(width))
        return weight

    def ask(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the answer as an array."""
        return np.asarray(self.predict_on_batch(dict(inputs))["answer"], np.float32)

    def state(self) -> list[Any]:
        """Return every variable that a training changes, the optimiser's among them."""
        return [*self.transformer.arrays, *self.projections, *self.optimizer.variables]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return the answer and what is compared."""
        del training
        answer, taps = self.transformer.watched(inputs, self._recipe)
        found = watched(taps, range(len(self.projections)), relations=bool(self._heads))
        for number, projection in enumerate(self.projections):
            found[f"state_{number}"] = ops.matmul(found[f"state_{number}"], projection)
        return {"answer": answer, **found}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool | None = True,
    ) -> Any:
        """Return the loss: `y` is what the teacher said, with ``labels`` and ``real``."""
        del sample_weight, training
        settings, real, answer = self._training, ops.cast(y["real"], "float32"), y_pred["answer"]
        total = 0.0
        if settings.soft:
            total = total + settings.soft * self._mean(self._soft(y["answer"], answer), real)
        if settings.hard and self._kind != "vector":
            total = total + settings.hard * self._hard(x, y["labels"], answer, real)
        for number in range(len(self.projections)):
            name = f"state_{number}"
            total = total + settings.hidden / len(self.projections) * losses.states(y[name], y_pred[name], real)
        for name, heads in zip(_PARTS, self._heads, strict=False):
            found = losses.relations(y[name], y_pred[name], real, heads=heads, causal=self._causal)
            total = total + settings.relations / len(_PARTS) * found
        return total

    def _soft(self, teacher: Any, student: Any) -> Any:
        if self._kind == "vector":
            return losses.vectors(teacher, student)
        compare = losses.soft_labels if self._kind == "classes" else losses.binary
        return compare(teacher, student, self._training.temperature)

    def _hard(self, x: Any, labels: Any, answer: Any, real: Any) -> Any:
        if self._spec.head.tokens is not None:
            wanted = ops.where(real[:, 1:] > 0, x[self._spec.token_input][:, 1:], -1)
            loss, known = losses.cross_entropy(wanted, answer[:, :-1])
        elif self._spec.head.pooling == "none":
            return 0.0  # a label of the whole says nothing of one token
        else:
            loss, known = losses.cross_entropy(labels, answer, independent=self._kind == "binary")
        return ops.sum(loss) / ops.maximum(ops.sum(known), 1.0)

    @staticmethod
    def _mean(loss: Any, real: Any) -> Any:
        if len(loss.shape) == 1:
            return ops.mean(loss)
        return ops.sum(loss * real) / ops.maximum(ops.sum(real), 1.0)


def layer_of(spec: TransformerSpec) -> Transformer:
    """Return the layer that computes a spec, with its weights."""
    structure, arrays = flatten(spec)
    layer = Transformer(structure, [array.shape for array in arrays], name="transformer")
    layer.set_arrays(arrays)
    layer.built = True  # its weights are made when it is
    return layer


def watched(taps: Taps, layers: Sequence[int], *, relations: bool) -> dict[str, Any]:
    """Return what was seen, by name."""
    found = {f"state_{number}": taps.states[layer] for number, layer in enumerate(layers)}
    return {**found, **dict(zip(_PARTS, taps.projections[-1], strict=True))} if relations else found


def relation_heads(teacher: int, student: int, most: int) -> int:
    """Return how many heads two projections of these widths are split into: a common divisor, no more than `most`."""
    common = math.gcd(teacher, student)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)
