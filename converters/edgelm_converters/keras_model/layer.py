"""The one layer of a model that `edgelm_converters.keras_model` makes. Importing this module imports Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from edgelm_converters.keras_model.forward import Taps, forward
from edgelm_converters.keras_model.rounded import rounded
from edgelm_converters.keras_model.structure import frozen_arrays, unflatten
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import TransformerSpec

__all__ = ["Transformer"]


@keras.saving.register_keras_serializable(package="edgelm")
class Transformer(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Computes a `TransformerSpec`.

    Args:
        structure: The spec without its arrays (`edgelm_converters.keras_model.structure.flatten`).
        shapes: Of the arrays.
        tokenizer: The JSON of a tokenizer that travels with the model.
    """

    def __init__(
        self, structure: dict[str, Any], shapes: Sequence[Sequence[int]], tokenizer: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.structure = structure
        self.shapes = [tuple(shape) for shape in shapes]
        self.tokenizer = tokenizer
        frozen = frozen_arrays(structure)
        self.arrays = [
            self.add_weight(shape=shape, name=f"array_{number}", dtype="float32", trainable=number not in frozen)
            for number, shape in enumerate(self.shapes)
        ]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Return the model's output; it computes the same in training."""
        del training
        return forward(unflatten(self.structure, self.arrays), inputs)

    def watched(self, inputs: Mapping[str, Any], recipe: Recipe | None = None) -> tuple[Any, Taps]:
        """Return the model's output and what is seen on the way.

        Args:
            inputs: By name.
            recipe: Kernels are rounded as it stores them; None computes with what they are.
        """
        taps = Taps()
        spec = unflatten(self.structure, self.arrays)
        return forward(spec if recipe is None else rounded(spec, recipe), inputs, taps), taps

    def compute_output_spec(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Return the output's shape without computing it."""
        del training
        spec: TransformerSpec = unflatten(self.structure, self.arrays)
        batch, length = inputs[spec.token_input].shape
        head, layers = spec.head, spec.head.layers
        if head.tokens is not None:
            shape: tuple[int | None, ...] = (batch, length, head.tokens.table.shape[0])
        else:
            width = layers[-1].linear.kernel.shape[1] if layers else spec.width
            shape = (batch, length, width) if head.pooling == "none" else (batch, width)
        return keras.KerasTensor(shape, dtype="float32")

    def set_arrays(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        """Set the weights."""
        for variable, array in zip(self.arrays, arrays, strict=True):
            variable.assign(array)

    def spec(self) -> TransformerSpec:
        """Return the spec with the weights as they are now."""
        return unflatten(self.structure, [np.array(keras.ops.convert_to_numpy(one), np.float32) for one in self.arrays])

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made of again."""
        config = {
            "structure": self.structure,
            "shapes": [list(shape) for shape in self.shapes],
            "tokenizer": self.tokenizer,
        }
        return {**super().get_config(), **config}
