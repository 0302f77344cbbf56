"""Reading KerasHub's layers: what the families BERT, DistilBERT, RoBERTa and ALBERT share, and decoders in part.

KerasHub builds them all from the same blocks: ``TransformerEncoder``, ``PositionEmbedding``, ``ReversibleEmbedding``
and Keras's ``Dense`` and ``LayerNormalization``. Each function here takes one such layer and returns its piece of the
spec. A layer that does more than its weights say (LoRA, quantised weights) is refused, with what to do. What only
language models have is in `keras_hub_decoders`.

KerasHub itself is never imported: a class is known by its name and its package, so that a model of another kind is
turned away on a workstation without KerasHub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from edgelm.errors import ModelError
from edgelm_converters.families import NotRecognised
from edgelm_converters.spec import (
    Activation,
    Attention,
    FeedForward,
    Float32,
    Head,
    HeadLayer,
    Layer,
    Linear,
    Norm,
    Output,
    Stack,
)

__all__ = [
    "PACKAGES",
    "activation",
    "array",
    "attention",
    "check_length",
    "class_head",
    "class_name",
    "dense",
    "embedding",
    "encoder_layer",
    "head_layer",
    "norm",
    "position_table",
    "refuse_altered",
    "stack",
]

PACKAGES = ("keras_hub", "keras_nlp")

# By the function's name, within Keras and KerasHub. `keras.activations.gelu` is the exact one (erf) unless it is asked
# otherwise; KerasHub's BERT and ALBERT ask with `gelu_approximate`, DistilBERT and RoBERTa do not.
_ACTIVATIONS: dict[str, Activation] = {
    "linear": "linear",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_approximate": "gelu_tanh",
    "silu": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}

_OUTPUTS: dict[str, Output] = {"linear": "logits", "softmax": "probabilities", "sigmoid": "sigmoid"}


def class_name(model: Any, known: Iterable[str]) -> str:
    """Return which of KerasHub's classes a model is an instance of.

    Args:
        model: Anything; usually a ``keras.Model``.
        known: The names of the classes that the family reads.

    Raises:
        NotRecognised: It is of another class, or of a user's own class that computes something else.
    """
    own_code: list[str] = []
    names = sorted(known)
    for kind in type(model).__mro__:
        if kind.__module__.split(".")[0] not in PACKAGES:
            # A Functional model's graph is made in __init__ and run by call: whoever overrides one may compute
            # anything.
            own_code += [f"{kind.__name__}.{name}" for name in ("__init__", "__call__", "call") if name in vars(kind)]
            continue
        if kind.__name__ not in names:
            break
        if own_code:
            raise NotRecognised(
                f"{type(model).__name__} is a {kind.__name__} with its own {', '.join(own_code)}: what it computes is "
                f"not known from its weights. Build it as a plain {kind.__name__} to have it recognised."
            )
        return kind.__name__
    raise NotRecognised(f"{type(model).__name__} is not KerasHub's {' or '.join(names)}.")


def check_length(sequence_length: int | None, positions: Float32) -> int:
    """Return the most tokens that a table of positions ``(P, E)`` allows.

    Raises:
        ModelError: `sequence_length` is above that.
    """
    rows = int(positions.shape[0])
    if sequence_length is not None and sequence_length > rows:
        raise ModelError(
            f"The model has {rows} positions and cannot take {sequence_length} tokens: ask for {rows} or fewer."
        )
    return rows


def dense(layer: Any) -> Linear:
    """Return a ``Dense`` layer's weights, without its activation."""
    refuse_altered(layer)
    return Linear(layer.path, array(layer.kernel), None if layer.bias is None else array(layer.bias))


def head_layer(layer: Any) -> HeadLayer:
    """Return a ``Dense`` layer of the head, with its activation."""
    return HeadLayer(dense(layer), activation(layer))


def class_head(hidden: Iterable[HeadLayer], logits: Any) -> Head:
    """Return the head of a text classifier: the first token, hidden layers, one dense layer with a row of classes.

    Args:
        hidden: What comes between the first token and the last layer.
        logits: The last ``Dense`` layer. Its activation (none, softmax or sigmoid) becomes the head's output.

    Raises:
        NotRecognised: The last activation is another one.
    """
    name = _function_name(logits.activation)
    if name not in _OUTPUTS:
        raise NotRecognised(f"The last layer '{logits.path}' ends in '{name}'; known are none, softmax and sigmoid.")
    return Head("first", (*hidden, HeadLayer(dense(logits), "linear")), _OUTPUTS[name])


def embedding(layer: Any) -> Float32:
    """Return the table of an ``Embedding`` or ``ReversibleEmbedding``, ``(rows, E)``."""
    refuse_altered(layer)
    return array(layer.embeddings)


def position_table(layer: Any) -> Float32:
    """Return the table of KerasHub's ``PositionEmbedding``, ``(P, E)``; token i takes row i, padding or not."""
    return array(layer.position_embeddings)


def norm(layer: Any) -> Norm:
    """Return a ``LayerNormalization`` over the last axis."""
    return Norm("layer", array(layer.gamma), array(layer.beta), float(layer.epsilon))


def encoder_layer(layer: Any) -> Layer:
    """Return one of KerasHub's ``TransformerEncoder`` blocks.

    Its sublayers have private names: KerasHub shows them in no other way.
    """
    up = layer._feedforward_intermediate_dense
    return Layer(
        attention=attention(layer._self_attention_layer),
        attention_norm=norm(layer._self_attention_layer_norm),
        feed_forward=FeedForward(activation(up), dense(up), dense(layer._feedforward_output_dense)),
        feed_forward_norm=norm(layer._feedforward_layer_norm),
        norm_placement="pre" if layer.normalize_first else "post",
    )


def stack(layers: Iterable[Any]) -> Stack:
    """Return ``TransformerEncoder`` blocks as a stack, in their order."""
    return Stack(tuple(encoder_layer(layer) for layer in layers))


def attention(layer: Any) -> Attention:
    """Return a ``MultiHeadAttention``, not causal, whose kernels are ``(D, H, A)``, and ``(H, A, D)`` for the output."""
    width, heads, head_dim = layer.query_dense.kernel.shape
    return Attention(
        heads=int(heads),
        kv_heads=int(heads),
        head_dim=int(head_dim),
        query=_projection(layer.query_dense, (width, -1)),
        key=_projection(layer.key_dense, (width, -1)),
        value=_projection(layer.value_dense, (width, -1)),
        output=_projection(layer.output_dense, (-1, width)),
        scale=1.0 / math.sqrt(head_dim),
    )


def _projection(layer: Any, shape: tuple[int, int]) -> Linear:
    """Return an ``EinsumDense`` layer with its heads flattened into one axis."""
    refuse_altered(layer)
    bias = None if layer.bias is None else array(layer.bias).reshape(-1)
    return Linear(layer.path, array(layer.kernel).reshape(shape), bias)


def activation(layer: Any) -> Activation:
    """Return the activation of a layer that has one as ``layer.activation``.

    Raises:
        NotRecognised: It is none that a spec has, or not Keras's own.
    """
    name = _function_name(layer.activation)
    if name not in _ACTIVATIONS:
        raise NotRecognised(f"The layer '{layer.path}' has the activation '{name}'; known: {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _function_name(function: Callable[..., Any]) -> str:
    """Return an activation's name; one that is not Keras's own comes with its module, and is in no table."""
    name = str(getattr(function, "__name__", type(function).__name__))
    module = str(getattr(function, "__module__", ""))
    return name if module.split(".")[0] in ("keras", *PACKAGES) else f"{module}.{name}"


def refuse_altered(layer: Any) -> None:
    """Raise NotRecognised for a layer whose weights are not the plain ones."""
    if getattr(layer, "lora_enabled", False):
        raise NotRecognised(
            f"The layer '{layer.path}' has LoRA weights beside its own. Save the model's weights (Keras merges them in "
            "the file) and load them into a model on which enable_lora() was never called."
        )
    if getattr(layer, "quantization_mode", None) is not None:
        raise NotRecognised(
            f"The layer '{layer.path}' was quantised by Keras ({layer.quantization_mode}). Give edgelm the model from "
            "before model.quantize(): a recipe such as dynamic_wi8_afp32 quantises it for the device."
        )


def array(variable: Any) -> Float32:
    """Return a Keras variable as float32, whatever it is held in (float32, float16 or bfloat16).

    A float32 variable is copied at most once, by its backend: a language model is large.
    """
    return np.ascontiguousarray(np.asarray(variable), dtype=np.float32)
