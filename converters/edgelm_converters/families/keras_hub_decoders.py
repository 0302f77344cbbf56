"""Reading KerasHub's causal language models: what the decoder families share.

Each family of KerasHub has layers of its own, with names of their own, that compute the same few things: attention with
grouped heads and a rotary embedding, a gated feed-forward, RMS normalisation, and a token embedding that also scores. Each
function here takes the layers that do one of these and returns its piece of the spec; which layers those are stands in the
family's own file.

Every layer is held to the class that the family expects: a layer that somebody has put in its place may compute anything.

Dimensions: ``D`` model width, ``H`` heads of a projection, ``A`` width of one head, ``V`` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgelm.errors import ModelError
from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.frameworks import import_keras
from edgelm_converters.spec import (
    Activation,
    Attention,
    Embeddings,
    FeedForward,
    Float32,
    Head,
    Layer,
    Linear,
    Norm,
    Rotary,
    Stack,
    TokenHead,
    TransformerSpec,
)

__all__ = [
    "attention",
    "backbone_of",
    "check_stated_length",
    "expect_class",
    "gated_feed_forward",
    "language_model",
    "rms_norm",
    "rotary",
    "scaled_rotary",
    "square_root_scale",
    "token_head",
    "transformer_decoder",
]


def backbone_of(model: Any, tasks: Iterable[str], backbones: Iterable[str]) -> Any:
    """Return the backbone of a language model of KerasHub; a bare backbone is its own.

    A bare backbone gives hidden states. It is read as the language model that its task makes of it: the token embedding,
    reversed, scores them. That needs no weight that the backbone has not.

    Args:
        model: Anything; usually a ``keras.Model``.
        tasks: Names of the family's tasks, such as ``"LlamaCausalLM"``.
        backbones: Names of the family's backbones.

    Raises:
        NotRecognised: The model or its backbone is of another class, or of a user's own that computes something else.
    """
    tasks, backbones = tuple(tasks), tuple(backbones)
    if hub.class_name(model, (*tasks, *backbones)) in backbones:
        return model
    hub.class_name(model.backbone, backbones)
    return model.backbone


def expect_class(layer: Any, name: str, packages: Iterable[str] = hub.PACKAGES) -> Any:
    """Return the layer, which is exactly of KerasHub's class `name`.

    Args:
        layer: Any layer.
        name: The class's name; Keras has an ``RMSNormalization`` too, which computes something else.
        packages: Where the class may be.

    Raises:
        NotRecognised: It is of another class. A subclass counts as another: its ``call`` may be its own.
    """
    kind = type(layer)
    if kind.__name__ != name or kind.__module__.split(".")[0] not in packages:
        raise NotRecognised(
            f"The layer '{layer.path}' is a {kind.__module__}.{kind.__name__}, and KerasHub's {name} was expected."
        )
    return layer


def attention(
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    *,
    scale: float,
    rotary: Rotary | None,
    query_norm: Norm | None = None,
    key_norm: Norm | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
) -> Attention:
    """Return causal attention with grouped heads, from its four ``EinsumDense`` layers.

    Args:
        query: ``(D) -> (H, A)``, the kernel laid out as the layer's equation says.
        key: Likewise, of fewer heads where they are grouped.
        value: As `key`.
        output: ``(H, A) -> (D)``.
        scale: What the scores are multiplied with.
        rotary: How queries and keys are turned.
        query_norm: Over each head's elements; None where there is none.
        key_norm: Likewise.
        soft_cap: On the scores; None where there is none.
        window: How many positions are seen, the own one among them; None for all.
    """
    queries, heads, head_dim = _heads(query)
    keys, kv_heads, _ = _heads(key)
    values, _, _ = _heads(value)
    hub.refuse_altered(output)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query=queries,
        key=keys,
        value=values,
        output=Linear(output.path, hub.array(output.kernel).reshape(heads * head_dim, -1), _bias(output)),
        scale=float(scale),
        causal=True,
        rotary=rotary,
        query_norm=query_norm,
        key_norm=key_norm,
        soft_cap=None if soft_cap is None else float(soft_cap),
        window=None if window is None else int(window),
    )


def gated_feed_forward(*, gate: Any, up: Any, down: Any, activation: Activation) -> FeedForward:
    """Return ``down(activation(gate(x)) * up(x))`` of three ``Dense`` or ``EinsumDense`` layers with kernels ``(in, out)``."""
    return FeedForward(activation, up=hub.dense(up), down=hub.dense(down), gate=hub.dense(gate))


def rms_norm(layer: Any, name: str, *, offset: float = 0.0) -> Norm:
    """Return an RMS normalisation of KerasHub's class `name`, whose gamma is ``offset + scale``.

    Gemma's scales are learned around 0, so that its gamma is ``1 + scale``.
    """
    expect_class(layer, name)
    scale = hub.array(layer.scale)
    return Norm("rms", scale if offset == 0.0 else np.float32(offset) + scale, None, float(layer.epsilon))


def rotary(layer: Any, name: str, head_dim: int) -> Rotary:
    """Return a rotary embedding of KerasHub's class `name`, with the frequencies that the layer itself computes.

    The layer is asked for them, in float32, rather than its formula repeated: `LlamaRotaryEmbedding` adjusts low
    frequencies (Llama 3.1), and takes no notice of its own ``position_scaling_factor``.

    Raises:
        NotRecognised: It scales cosine and sine too (YaRN), which no family here does.
    """
    expect_class(layer, name)
    if layer.rope_type != "linear":
        raise NotRecognised(
            f"The rotary embedding '{layer.path}' is of type '{layer.rope_type}', and 'linear' was expected."
        )
    return Rotary(_frequencies(layer, head_dim))


def scaled_rotary(layer: Any, name: str, head_dim: int, divisors: Iterable[float]) -> Rotary:
    """Return a rotary embedding of KerasHub's class `name` whose frequencies are each divided by one of `divisors`.

    Phi-3's, which lists them for short and for long contexts, and scales cosine and sine by one factor for both.
    """
    expect_class(layer, name)
    frequencies: Float32 = np.divide(_frequencies(layer, head_dim), np.asarray(tuple(divisors), np.float32))
    return Rotary(frequencies, factor=float(layer.embedding_scaling_factor))


def transformer_decoder(layer: Any) -> Layer:
    """Return a ``keras_hub.layers.TransformerDecoder`` without cross-attention (GPT-2's).

    Raises:
        NotRecognised: It is another layer, or attends to an encoder.
    """
    expect_class(layer, "TransformerDecoder")
    expect_class(layer._self_attention_layer, "CachedMultiHeadAttention")
    if layer._cross_attention_layer is not None:
        raise NotRecognised(f"The layer '{layer.path}' attends to an encoder, and a decoder alone was expected.")
    piece = hub.encoder_layer(layer)  # its sublayers have the names of a TransformerEncoder's
    return dataclasses.replace(piece, attention=dataclasses.replace(piece.attention, causal=True))


def square_root_scale(layer: Any, width: int) -> float:
    """Return ``sqrt(D)`` as Gemma multiplies its embeddings with it: rounded to the embedding's compute dtype.

    In bfloat16 ``sqrt(3072)`` is 55.5, not 55.43: the model was trained with that.
    """
    ops = import_keras().ops
    root = ops.cast(ops.sqrt(width), layer.compute_dtype)
    return float(ops.convert_to_numpy(ops.cast(root, "float32")))


def token_head(layer: Any, table: Float32) -> TokenHead:
    """Return how a ``ReversibleEmbedding`` scores tokens.

    Args:
        layer: The embedding.
        table: What was read of it, ``(V, D)``: the head's own table where the two are tied.
    """
    if not layer.tie_weights:
        table = np.ascontiguousarray(hub.array(layer.reverse_embeddings).T)
    cap = layer.logit_soft_cap
    return TokenHead(layer.path, table, soft_cap=None if cap is None else float(cap))


def language_model(
    family: str,
    model: Any,
    backbone: Any,
    layers: Iterable[Layer],
    *,
    final_norm: Norm,
    max_length: int | None,
    position: Float32 | None = None,
    token_scale: float = 1.0,
) -> TransformerSpec:
    """Return the spec of a language model of KerasHub.

    It has no mask: a causal model sees nothing behind a token, so padding at the end changes no answer before it.

    Args:
        family: The reader's name.
        model: The task, or the bare backbone.
        backbone: Its backbone, with a ``token_embedding``.
        layers: In order.
        final_norm: After the last layer.
        max_length: The most tokens that it takes; None where nothing bounds it.
        position: Learned positions, ``(P, D)``.
        token_scale: Factor on the token's row.
    """
    expect_class(backbone.token_embedding, "ReversibleEmbedding", ("keras", *hub.PACKAGES))  # GPT-2 takes Keras's own
    table = hub.embedding(backbone.token_embedding)
    return TransformerSpec(
        family=family,
        name=model.name,
        embeddings=Embeddings(token=table, position=position, token_scale=token_scale),
        encoder=Stack(()),
        decoder=Stack(tuple(layers), final_norm),
        head=Head("none", (), "logits", tokens=token_head(backbone.token_embedding, table)),
        mask="none",
        token_input="token_ids",  # noqa: S106 - the name of an input
        output_name="logits",
        max_length=max_length,
    )


def check_stated_length(sequence_length: int | None, stated: int) -> int:
    """Return the most tokens that a model's settings state.

    Raises:
        ModelError: `sequence_length` is above that.
    """
    if sequence_length is not None and sequence_length > stated:
        raise ModelError(
            f"The model states {stated} tokens as its longest sequence and {sequence_length} were asked for: ask for "
            f"{stated} or fewer."
        )
    return stated


def _heads(layer: Any) -> tuple[Linear, int, int]:
    """Return an ``EinsumDense`` from ``(D)`` to ``(H, A)`` as a 2-D projection, with its heads and their width.

    Its equation says where D stands in the kernel: ``bqm,muh->bquh`` (Llama) or ``btd,ndh->btnh`` (Gemma).
    """
    hub.refuse_altered(layer)
    inputs, kernel = layer.equation.split("->")[0].split(",")
    weights = np.moveaxis(hub.array(layer.kernel), kernel.index(inputs[-1]), 0)
    width, heads, head_dim = weights.shape
    return Linear(layer.path, weights.reshape(width, heads * head_dim), _bias(layer)), heads, head_dim


def _bias(layer: Any) -> Float32 | None:
    return None if layer.bias is None else hub.array(layer.bias).reshape(-1)


def _frequencies(layer: Any, head_dim: int) -> Float32:
    frequencies = import_keras().ops.convert_to_numpy(layer._get_inverse_freq(head_dim))
    return np.ascontiguousarray(frequencies, dtype=np.float32)
