"""Small random Transformers for the emitters' tests, with every option of a spec."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from edgelm_converters.spec import (
    Activation,
    Attention,
    AudioFrontEnd,
    Embeddings,
    FeedForward,
    Head,
    HeadLayer,
    Layer,
    Linear,
    Norm,
    Output,
    RelativeBias,
    Rotary,
    Source,
    Stack,
    TokenHead,
    TransformerSpec,
)
from numpy.typing import NDArray

__all__ = ["random_decoder", "random_inputs", "random_pair", "random_seq2seq", "random_spec"]


class _Draw:
    """Random weights of a size that keeps activations near 1."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def array(self, *shape: int, spread: float, middle: float = 0.0) -> NDArray[np.float32]:
        return (middle + spread * self.generator.standard_normal(shape)).astype(np.float32)

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool) -> Linear:
        kernel = self.array(inputs, outputs, spread=inputs**-0.5)
        return Linear(name, kernel, self.array(outputs, spread=0.1) if bias else None)

    def norm(self, kind: Any, width: int, eps: float) -> Norm:
        beta = self.array(width, spread=0.1) if kind == "layer" else None
        return Norm(kind, self.array(width, spread=0.2, middle=1.0), beta, eps)


def random_spec(
    *,
    layers: int = 2,
    width: int = 16,
    heads: int = 2,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    feed_forward: int = 32,
    vocabulary: int = 50,
    positions: int | None = 64,
    segments: int | None = None,
    embedding_width: int | None = None,
    embedding_norm: bool = True,
    token_scale: float = 1.0,
    norm: str = "layer",
    norm_placement: str = "post",
    final_norm: bool = False,
    eps: float = 1e-5,
    activation: Activation = "gelu",
    gated: bool = False,
    biases: bool = True,
    causal: bool = False,
    shared_layers: bool = False,
    mask: str = "nonzero",
    pooling: str = "mean",
    pooling_masked: bool = True,
    head: tuple[tuple[int, Activation], ...] = ((8, "tanh"), (5, "linear")),
    output: Output = "logits",
    seed: int = 0,
) -> TransformerSpec:
    """Return a spec with random float32 weights.

    Args:
        head_dim: Of one head; width / heads where None.
        embedding_width: Narrower embeddings with a projection to `width`, as ALBERT's.
        head: Width and activation of each head layer.
        shared_layers: Every layer is the same object, as ALBERT's.
        seed: Of the weights.
    """
    draw = _Draw(seed)
    kv_heads = kv_heads or heads
    head_dim = head_dim or width // heads
    narrow = embedding_width or width

    def layer(index: int) -> Layer:
        name = f"layer_{index}"
        attention = Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query=draw.linear(f"{name}/query", width, heads * head_dim, bias=biases),
            key=draw.linear(f"{name}/key", width, kv_heads * head_dim, bias=biases),
            value=draw.linear(f"{name}/value", width, kv_heads * head_dim, bias=biases),
            output=draw.linear(f"{name}/attention_output", heads * head_dim, width, bias=biases),
            scale=head_dim**-0.5,
            causal=causal,
        )
        gate = draw.linear(f"{name}/gate", width, feed_forward, bias=biases) if gated else None
        return Layer(
            attention=attention,
            attention_norm=draw.norm(norm, width, eps),
            feed_forward=FeedForward(
                activation,
                up=draw.linear(f"{name}/up", width, feed_forward, bias=biases),
                down=draw.linear(f"{name}/down", feed_forward, width, bias=biases),
                gate=gate,
            ),
            feed_forward_norm=draw.norm(norm, width, eps),
            norm_placement=norm_placement,  # type: ignore[arg-type]
        )

    embeddings = Embeddings(
        token=draw.array(vocabulary, narrow, spread=0.5 / token_scale),
        position=draw.array(positions, narrow, spread=0.5) if positions else None,
        segment=draw.array(segments, narrow, spread=0.5) if segments else None,
        norm=draw.norm(norm, narrow, eps) if embedding_norm else None,
        projection=draw.linear("embedding_projection", narrow, width, bias=biases) if embedding_width else None,
        token_scale=token_scale,
    )
    stack = (layer(0),) * layers if shared_layers else tuple(layer(index) for index in range(layers))
    head_layers = []
    inputs = width
    for index, (outputs, head_activation) in enumerate(head):
        head_layers.append(HeadLayer(draw.linear(f"head_{index}", inputs, outputs, bias=biases), head_activation))
        inputs = outputs
    return TransformerSpec(
        family="random",
        name="random",
        embeddings=embeddings,
        encoder=Stack(stack, draw.norm(norm, width, eps) if final_norm else None),
        head=Head(pooling, tuple(head_layers), output, pooling_masked),  # type: ignore[arg-type]
        mask=mask,  # type: ignore[arg-type]
        token_input="token_ids",
        output_name="answer",
        max_length=positions,
        mask_input="padding_mask" if mask == "input" else None,
        segment_input="segment_ids" if segments else None,
    )


def random_decoder(
    *,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    feed_forward: int = 48,
    vocabulary: int = 96,
    positions: int | None = None,
    max_length: int = 64,
    token_scale: float = 1.0,
    norm: str = "rms",
    norm_placement: str = "pre",
    post_norms: bool = False,
    final_norm: bool = True,
    activation: Activation = "silu",
    gated: bool = True,
    biases: bool = False,
    query_key_norm: bool = False,
    rotary: int | None = -1,
    rotary_factor: float = 1.0,
    soft_cap: float | None = None,
    windows: tuple[int | None, ...] = (None,),
    tied: bool = True,
    head_bias: bool = False,
    head_soft_cap: float | None = None,
    seed: int = 0,
) -> TransformerSpec:
    """Return a language model's spec with random float32 weights.

    Args:
        positions: Rows of a learned position table, at least `max_length`; None for none.
        rotary: Elements of a head that are turned; -1 for all of them, None for no rotary embedding.
        windows: Sliding windows of the layers, repeated; None for full attention. Layers with a window also have another
            rotary base, as Gemma 3's.
        tied: Whether the head scores with the embedding table itself.
    """
    if positions is not None and rotary == -1:
        rotary = None
    base = random_spec(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim, feed_forward=feed_forward,
        vocabulary=vocabulary, positions=positions, embedding_norm=False, token_scale=token_scale, norm=norm,
        norm_placement=norm_placement, final_norm=final_norm, activation=activation, gated=gated, biases=biases,
        causal=True, mask="none", pooling="none", head=(), seed=seed,
    )  # fmt: skip
    draw = _Draw(seed + 1)

    def decode(layer: Layer, window: int | None) -> Layer:
        A = layer.attention.head_dim
        turned = A if rotary == -1 else rotary
        attention = dataclasses.replace(
            layer.attention,
            rotary=None
            if turned is None
            else Rotary(_frequencies(turned, 10000.0 if window is None else 100.0), rotary_factor),
            query_norm=draw.norm(norm, A, 1e-6) if query_key_norm else None,
            key_norm=draw.norm(norm, A, 1e-6) if query_key_norm else None,
            soft_cap=soft_cap,
            window=window,
        )
        return dataclasses.replace(
            layer,
            attention=attention,
            attention_post_norm=draw.norm(norm, width, 1e-6) if post_norms else None,
            feed_forward_post_norm=draw.norm(norm, width, 1e-6) if post_norms else None,
        )

    decoded = tuple(decode(layer, windows[i % len(windows)]) for i, layer in enumerate(base.encoder.layers))
    table = base.embeddings.token if tied else draw.array(vocabulary, width, spread=width**-0.5)
    bias = draw.array(vocabulary, spread=0.1) if head_bias else None
    return dataclasses.replace(
        base,
        encoder=Stack(()),
        decoder=Stack(decoded, base.encoder.final_norm),
        head=Head("none", (), "logits", tokens=TokenHead("head", table, bias, head_soft_cap)),
        output_name="logits",
        max_length=max_length,
    )


def random_seq2seq(
    *,
    layers: int = 2,
    encoder_layers: int = 2,
    width: int = 32,
    heads: int = 4,
    head_dim: int | None = None,
    feed_forward: int = 48,
    vocabulary: int = 96,
    source_vocabulary: int | None = None,
    source_length: int = 32,
    target_length: int = 24,
    positions: bool = True,
    relative: bool = False,
    embedding_norm: bool = False,
    token_scale: float = 1.0,
    norm: str = "layer",
    norm_placement: str = "post",
    final_norm: bool = False,
    activation: Activation = "relu",
    gated: bool = False,
    biases: bool = True,
    source_mask: str = "nonzero",
    bands: int | None = None,
    tied: bool = False,
    head_bias: bool = True,
    seed: int = 0,
) -> TransformerSpec:
    """Return an encoder-decoder's spec with random float32 weights.

    Args:
        layers: Of the decoder.
        source_vocabulary: Of source embeddings of their own; None shares the decoder's.
        positions: Whether both sides have a table of positions.
        relative: Whether self-attention has T5's bias, one table a stack.
        bands: Mel bands of an encoder that hears; None where it reads tokens.
        tied: Whether the head scores with the decoder's embedding table.
    """
    shared: dict[str, Any] = {
        "width": width, "heads": heads, "head_dim": head_dim, "feed_forward": feed_forward, "norm": norm,
        "norm_placement": norm_placement, "final_norm": final_norm, "activation": activation, "gated": gated,
        "biases": biases, "embedding_norm": embedding_norm, "token_scale": token_scale, "pooling": "none", "head": (),
    }  # fmt: skip
    read = random_spec(
        layers=encoder_layers, vocabulary=source_vocabulary or vocabulary, mask=source_mask, seed=seed,
        positions=source_length if positions else None, **shared,
    )  # fmt: skip
    base = random_spec(
        layers=layers, vocabulary=vocabulary, mask="none", causal=True, seed=seed + 1,
        positions=target_length if positions else None, **shared,
    )  # fmt: skip
    draw = _Draw(seed + 2)

    def biased(stack: Stack, *, bidirectional: bool) -> tuple[Layer, ...]:
        if not relative:
            return stack.layers
        bias = RelativeBias(draw.array(8, heads, spread=0.5), 16, bidirectional)
        return tuple(
            dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, relative=bias))
            for layer in stack.layers
        )

    crosses = random_spec(layers=layers, mask="none", seed=seed + 3, positions=None, **shared).encoder.layers
    decoder = tuple(
        dataclasses.replace(layer, cross_attention=cross.attention, cross_attention_norm=cross.attention_norm)
        for layer, cross in zip(biased(base.encoder, bidirectional=False), crosses, strict=True)
    )
    embeddings = read.embeddings
    if source_vocabulary is None:
        embeddings = dataclasses.replace(embeddings, token=base.embeddings.token)
    audio = None
    if bands is not None:
        audio = AudioFrontEnd(
            ("conv_1", "conv_2"),
            (draw.array(3, bands, width, spread=bands**-0.5), draw.array(3, width, width, spread=width**-0.5)),
            (draw.array(width, spread=0.1), draw.array(width, spread=0.1)),
            draw.array(source_length // 2, width, spread=0.5),
        )
    table = base.embeddings.token if tied else draw.array(vocabulary, width, spread=width**-0.5)
    head = TokenHead("head", table, draw.array(vocabulary, spread=0.1) if head_bias else None)
    return dataclasses.replace(
        base,
        name="translator",
        encoder=Stack(biased(read.encoder, bidirectional=True), read.encoder.final_norm),
        decoder=Stack(decoder, base.encoder.final_norm),
        head=Head("none", (), "logits", tokens=head),
        token_input="decoder_ids",
        output_name="logits",
        max_length=target_length,
        source=Source(
            embeddings=None if audio is not None else embeddings,
            audio=audio,
            mask="none" if audio is not None else source_mask,  # type: ignore[arg-type]
            input="frames" if audio is not None else "source_ids",
            mask_input="source_mask" if audio is None and source_mask == "input" else None,
            max_length=source_length,
        ),
    )


def random_pair(
    spec: TransformerSpec, source: int, target: int, *, real: int | None = None, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Return a valid source of `source` tokens (or frames), of which `real` are no padding, and `target` ids, one row each."""
    assert spec.source is not None
    generator = np.random.default_rng(seed)
    targets = generator.integers(1, spec.vocabulary_size, (1, target)).astype(np.int32)
    if spec.source.audio is not None:
        frames = generator.standard_normal((1, source, spec.source.audio.kernels[0].shape[1])).astype(np.float32)
        return {spec.source.input: frames, spec.token_input: targets}
    assert spec.source.embeddings is not None
    ids = generator.integers(1, len(spec.source.embeddings.token), (1, source)).astype(np.int32)
    ids[0, source if real is None else real :] = 0
    inputs = {spec.source.input: ids, spec.token_input: targets}
    if spec.source.mask_input is not None:
        inputs[spec.source.mask_input] = (np.arange(source) < (real or source)).astype(np.int32)[None]
    return inputs


def _frequencies(width: int, base: float) -> NDArray[np.float32]:
    return (1.0 / base ** (np.arange(0, width, 2) / width)).astype(np.float32)


def random_inputs(
    spec: TransformerSpec, length: int, *, real: int | None = None, seed: int = 0
) -> dict[str, NDArray[np.int32]]:
    """Return valid inputs by name, int32 ``(1, length)``: `real` tokens (all where None), then padding (id 0)."""
    real = length if real is None else real
    generator = np.random.default_rng(seed)
    tokens = np.zeros((1, length), np.int32)
    tokens[0, :real] = generator.integers(1, spec.vocabulary_size, real)
    inputs = {spec.token_input: tokens}
    if spec.mask_input is not None:
        inputs[spec.mask_input] = (np.arange(length) < real).astype(np.int32)[None]
    if spec.segment_input is not None:
        assert spec.embeddings.segment is not None
        segments = generator.integers(0, len(spec.embeddings.segment), length).astype(np.int32)
        segments[real:] = 0
        inputs[spec.segment_input] = segments[None]
    return inputs
