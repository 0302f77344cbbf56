"""A `TransformerSpec` as a Keras model again: what a pruned, trimmed or distilled model is trained as, saved as and held to.

A pruned model has shapes that no Keras class of its family has. This one computes any spec, is trained like every Keras model,
and is saved as a ``.keras`` file that `edgelm convert` takes.
"""

from __future__ import annotations

from typing import Any

from edgelm.errors import ModelError
from edgelm_converters.frameworks import import_keras
from edgelm_converters.keras_model.structure import flatten
from edgelm_converters.spec import TransformerSpec

__all__ = ["REGISTERED", "build_keras_model", "carried_tokenizer", "read_keras_model"]

REGISTERED = "edgelm>Transformer"  # how a saved file names the layer


def build_keras_model(spec: TransformerSpec, *, tokenizer: str | None = None) -> Any:
    """Return a `keras.Model` that computes a spec, with its weights as trainable variables.

    Inputs are int32 ``(B, n)`` by name, as the spec names them; the output is float32, as the spec describes it. On any of
    Keras's backends.

    Args:
        spec: The model. Its arrays are copied.
        tokenizer: The JSON of a tokenizer that travels with the model.

    Raises:
        ModelError: It was prepared for few bits (`edgelm_converters.prepare`), and is no model to train; or it is an
            encoder-decoder.
    """
    if spec.translates:
        raise ModelError(
            f"'{spec.name}' has an encoder and a decoder, and edgelm builds models of one stack: it cannot be pruned, "
            "trimmed or distilled yet; train it smaller in Keras."
        )
    keras = import_keras()
    from edgelm_converters.keras_model.layer import Transformer

    structure, arrays = flatten(spec)
    names = [spec.token_input, *(name for name in (spec.mask_input, spec.segment_input) if name is not None)]
    inputs = {name: keras.Input((spec.fixed_length,), dtype="int32", name=name) for name in names}
    layer = Transformer(structure, [array.shape for array in arrays], tokenizer=tokenizer, name="transformer")
    model = keras.Model(inputs, layer(inputs), name=spec.name)
    layer.set_arrays(arrays)
    return model


def read_keras_model(model: Any) -> TransformerSpec | None:
    """Return the spec of a model that `build_keras_model` made, with its weights as they are now; None for any other."""
    layer = _layer_of(model)
    return None if layer is None else layer.spec()


def carried_tokenizer(model: Any) -> str | None:
    """Return the JSON of the tokenizer that travels with such a model; None where there is none."""
    layer = _layer_of(model)
    return None if layer is None else layer.tokenizer


def _layer_of(model: Any) -> Any | None:
    """Return the one layer of such a model, without importing Keras."""
    layers = [layer for layer in getattr(model, "layers", ()) if type(layer).__module__.startswith(f"{__name__}.")]
    others = [layer for layer in getattr(model, "layers", ()) if type(layer).__name__ != "InputLayer"]
    return layers[0] if len(layers) == len(others) == 1 else None
