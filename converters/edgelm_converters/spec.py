"""A Transformer as frozen data: what every family reader makes, and every compressor and emitter takes.

Dimensions in this module: ``V`` vocabulary, ``P`` positions, ``D`` model width, ``E`` embedding width, ``H`` attention heads,
``K`` key/value heads, ``A`` width of one head, ``F`` feed-forward width, ``C`` classes, ``M`` mel bands of audio.

Weights are NumPy arrays (float32) held by the piece that uses them, laid out as Keras lays them out: a kernel is
``(in, out)``. The same array object used in two places is one tensor in the artifact (tied embeddings, ALBERT's shared
layers). `Linear.name` is the path of the Keras layer that the weights came from: reports and per-layer choices use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Activation",
    "Attention",
    "AudioFrontEnd",
    "Embeddings",
    "FeedForward",
    "Float32",
    "Grid",
    "Head",
    "HeadLayer",
    "Layer",
    "Linear",
    "Norm",
    "Output",
    "RelativeBias",
    "Rotary",
    "Source",
    "Stack",
    "TokenHead",
    "TransformerSpec",
    "parameters",
]

Float32 = NDArray[np.float32]

Activation = Literal["linear", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
Output = Literal["logits", "probabilities", "sigmoid", "embedding", "raw"]


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid that a kernel ``(in, out)`` lies on already: an artifact in 4 bits stores exactly these steps.

    Each run of ``in / blocks`` inputs has a scale: ``kernel.T == steps * scale``, steps whole numbers in [-8, 7].

    Attributes:
        scale: float32 ``(out, blocks)``, above 0 and with no more than 8 significant bits, as XNNPACK computes with them.
    """

    scale: Float32


@dataclass(frozen=True, eq=False)
class Linear:
    """``y = x @ kernel + bias``; kernel ``(in, out)``, bias ``(out,)`` or None.

    Attributes:
        grid: Where the kernel was rounded to 4 bits already.
        least_bits: The fewest that a recipe may store the kernel in: 8 under a recipe of 4 bits, or 16, which is float16 and
            float32 arithmetic under every recipe with integers.
    """

    name: str
    kernel: Float32
    bias: Float32 | None
    grid: Grid | None = None
    least_bits: Literal[4, 8, 16] = 4


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer or RMS normalisation over the last axis; gamma ``(D,)``, beta ``(D,)`` or None."""

    kind: Literal["layer", "rms"]
    gamma: Float32
    beta: Float32 | None
    eps: float


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary position embedding of queries and keys, in halves (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    The first R elements of a head are rotated, the rest stays: element j < R/2 at position p is paired with element
    ``j + R/2``, and the pair is turned by ``p * frequencies[j]``: ``(a, b) -> factor * (a cos - b sin, b cos + a sin)``.

    Attributes:
        frequencies: Radians a position, float32 ``(R/2,)``, after every scaling (linear, Llama 3's, su).
        factor: What cosine and sine are multiplied with; 1.0 where nothing is said.
    """

    frequencies: Float32
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """What T5 adds to the scores instead of positions (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1).

    The score of a query at position q and a key at position k gets ``table[bucket(k - q), h]`` in head h. Buckets are
    single distances near 0 and grow with the logarithm up to `max_distance`; `edgelm_converters.relative` computes them.

    Attributes:
        table: ``(buckets, H)``. The same array in every layer of a stack that shares it.
        max_distance: From here on all distances share the last bucket.
        bidirectional: Half of the buckets for keys behind the query, half for those ahead; otherwise all for those behind.
    """

    table: Float32
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True, eq=False)
class Attention:
    """Multi-head attention: self-attention, or cross-attention, whose keys and values are of the encoder's output.

    ``softmax(cap(scale * q @ k^T) + relative + mask) @ v``, per head. The kernels are 2-D: query ``(D, H*A)``, key
    ``(D, K*A)``, value ``(D, K*A)``, output ``(H*A, D)``; the columns of head h are ``[h*A, (h+1)*A)``. Query head h reads
    key/value head ``h // (H/K)``.

    Attributes:
        scale: What the scores are multiplied with, usually ``1/sqrt(A)``.
        causal: Whether a position sees only itself and those before it.
        rotary: Turns queries and keys by their position, after `query_norm` and `key_norm`.
        query_norm: Over each head's A elements of the query, gamma ``(A,)``.
        key_norm: Likewise of the key.
        soft_cap: ``cap(x) = soft_cap * tanh(x / soft_cap)``, before the mask; None where there is none.
        window: With `causal`: a position sees itself and the ``window - 1`` before it; None: all before it.
        relative: Added to the scores by distance; None where positions are told otherwise.
    """

    heads: int
    kv_heads: int
    head_dim: int
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    scale: float
    causal: bool = False
    rotary: Rotary | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    soft_cap: float | None = None
    window: int | None = None
    relative: RelativeBias | None = None


@dataclass(frozen=True, eq=False)
class FeedForward:
    """``down(activation(up(x)))``, or ``down(activation(gate(x)) * up(x))`` where there is a gate.

    Attributes:
        turn: ``(b, b)``, orthogonal: each run of b inner channels is multiplied with it before `down`, whose kernel undoes it
            (`edgelm_converters.rotation`). None where there is none, as in every model that was just read.
    """

    activation: Activation
    up: Linear
    down: Linear
    gate: Linear | None = None
    turn: Float32 | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One Transformer block: attention, then feed-forward, each with its residual and its norm.

    ``norm_placement`` "post": ``x = norm(x + f(x))``; "pre": ``x = x + f(norm(x))``.

    Attributes:
        attention_post_norm: With "pre": a second norm, on what attention adds (Gemma 2): ``x = x + post(f(norm(x)))``.
        feed_forward_post_norm: Likewise on what the feed-forward adds.
        cross_attention: Between the two, over the encoder's output, with its residual: the layers of an encoder-decoder's
            decoder. Not causal, without rotation and relative bias; the source's padding is hidden from it.
        cross_attention_norm: Its norm, placed as the others.
    """

    attention: Attention
    attention_norm: Norm
    feed_forward: FeedForward
    feed_forward_norm: Norm
    norm_placement: Literal["pre", "post"]
    attention_post_norm: Norm | None = None
    feed_forward_post_norm: Norm | None = None
    cross_attention: Attention | None = None
    cross_attention_norm: Norm | None = None


@dataclass(frozen=True, eq=False)
class Stack:
    """Layers in order; `final_norm` comes after the last one (usual where norms are "pre")."""

    layers: tuple[Layer, ...]
    final_norm: Norm | None = None


@dataclass(frozen=True, eq=False)
class Embeddings:
    """``norm(token[ids] * token_scale + position[p] + segment[segment_ids])``, then `projection`.

    Attributes:
        token: ``(V, E)``.
        token_scale: Factor on the token's row; 1.0 where there is none.
        position: ``(P, E)``, learned or computed beforehand (sinusoidal); None where the model has none, or turns queries and
            keys instead (`Rotary`). Row p belongs to the token at position p.
        segment: ``(S, E)``; None where the model takes no segment ids.
        norm: After the sum.
        projection: ``(E, D)`` where the embeddings are narrower than the model (ALBERT).
        least_bits: As `Linear.least_bits`, of the tables.
    """

    token: Float32
    position: Float32 | None
    segment: Float32 | None = None
    norm: Norm | None = None
    projection: Linear | None = None
    token_scale: float = 1.0
    least_bits: Literal[8, 16] = 8


@dataclass(frozen=True, eq=False)
class HeadLayer:
    """A dense layer of the head, with its activation."""

    linear: Linear
    activation: Activation


@dataclass(frozen=True, eq=False)
class TokenHead:
    """What makes a score for every token of the vocabulary: ``cap(x @ table^T + bias)``; x is ``x + mixing(x)`` before.

    Attributes:
        name: Path of the Keras layer.
        table: ``(V, D)``: the very array of `Embeddings.token` where the two are tied.
        bias: ``(V,)`` or None.
        soft_cap: ``cap(x) = soft_cap * tanh(x / soft_cap)``; None where there is none.
        mixing: ``(D, D)``, small beside the identity: what is left of the last norm's gamma in a rotated model
            (`edgelm_converters.rotation`). None where there is none, as in every model that was just read.
        least_bits: As `Linear.least_bits`, of the table; where it is tied, the embeddings' is the same.
    """

    name: str
    table: Float32
    bias: Float32 | None = None
    soft_cap: float | None = None
    mixing: Linear | None = None
    least_bits: Literal[8, 16] = 8


@dataclass(frozen=True, eq=False)
class Head:
    """What makes the answer out of the last stack's ``(n, D)`` output.

    Attributes:
        pooling: ``first`` (the first token), ``mean`` or ``max`` (over the tokens; over those that are not padding if
            `pooling_masked`), ``none`` (the whole sequence is the output).
        layers: Dense layers after pooling, in order. The last has the activation "linear" even where the model ends in a
            softmax: that is `output`.
        output: What comes out. "logits": no softmax; "probabilities": a softmax is applied in the graph; "sigmoid": an
            independent sigmoid a class, in the graph; "embedding" and "raw": as it is.
        pooling_masked: Whether padding is left out of mean or max pooling.
        tokens: A language model's head; `pooling` is then "none", `layers` empty and `output` "logits".
    """

    pooling: Literal["first", "mean", "max", "none"]
    layers: tuple[HeadLayer, ...]
    output: Output
    pooling_masked: bool = True
    tokens: TokenHead | None = None


@dataclass(frozen=True, eq=False)
class AudioFrontEnd:
    """Two convolutions over the log-mel frames of audio, each followed by an exact GELU, then positions (Whisper).

    ``x = gelu(conv(frames))``, ``x = gelu(conv(x, stride=2))``, ``x + position``: padded so that the first keeps the number of
    frames and the second halves it (Radford et al. 2022, https://arxiv.org/abs/2212.04356). For an input of n frames, zeros
    stand before the first and after the last one.

    Attributes:
        name: Paths of the two Keras layers.
        kernels: ``(3, M, D)`` and ``(3, D, D)``.
        biases: ``(D,)`` each.
        position: ``(P, D)``; row p belongs to the frames 2p and 2p + 1.
    """

    name: tuple[str, str]
    kernels: tuple[Float32, Float32]
    biases: tuple[Float32, Float32]
    position: Float32


@dataclass(frozen=True, eq=False)
class Source:
    """What an encoder-decoder reads, and how it becomes vectors for its encoder.

    Attributes:
        embeddings: Of source tokens; arrays that the decoder's embeddings share are the very same. None where it hears audio.
        audio: Of audio instead of tokens.
        mask: Which source tokens count, as `TransformerSpec.mask`; "none" for audio.
        input: The name of the input: ids ``(B, S)``, or frames ``(B, n, M)``.
        mask_input: The name of the mask's input where `mask` is ``"input"``.
        max_length: The most tokens or frames; None where nothing bounds it.
    """

    embeddings: Embeddings | None
    audio: AudioFrontEnd | None
    mask: Literal["input", "nonzero", "none"]
    input: str
    mask_input: str | None = None
    max_length: int | None = None

    def describe(self) -> dict[str, int | float | str | bool | None]:
        """Return what is read in a few plain figures: tokens of a vocabulary, or frames of mel bands."""
        figures: dict[str, int | float | str | bool | None] = {
            "source_max_length": self.max_length,
            "source_mask": self.mask,
        }
        if self.audio is not None:
            return {**figures, "source_bands": int(self.audio.kernels[0].shape[1])}
        return figures if self.embeddings is None else {**figures, "source_vocabulary": len(self.embeddings.token)}


@dataclass(frozen=True, eq=False)
class TransformerSpec:
    """A whole model: an encoder, a decoder (a language model), or an encoder-decoder, which has a `source`.

    Of an encoder-decoder, `embeddings`, `mask`, `token_input`, `mask_input` and `max_length` are those of the decoder.

    Attributes:
        family: The reader that made it, such as ``"bert"``.
        name: The Keras model's name.
        embeddings: Turns ids into vectors.
        encoder: The layers of an encoder; none in a model that only decodes.
        head: Turns vectors into the answer.
        mask: Which tokens count. ``input``: the model has a ``padding_mask`` input (1 = real token); ``nonzero``: token id 0
            is padding (Keras's ``mask_zero``); ``none``: the model sees its padding.
        token_input: The name of the ids' input, usually ``"token_ids"``.
        mask_input: The name of the mask's input where `mask` is ``"input"``.
        segment_input: The name of the segment ids' input where the embeddings have segments.
        output_name: The name of the output.
        max_length: The most tokens that the model takes; None where nothing bounds it (no position table).
        fixed_length: The only length that the model takes (it sees its padding and its input has a fixed shape), or None.
        decoder: The layers of a language model, all causal, behind the same embeddings; none in an encoder.
        source: What an encoder-decoder reads; None in the others.
    """

    family: str
    name: str
    embeddings: Embeddings
    encoder: Stack
    head: Head
    mask: Literal["input", "nonzero", "none"]
    token_input: str
    output_name: str
    max_length: int | None
    mask_input: str | None = None
    segment_input: str | None = None
    fixed_length: int | None = None
    decoder: Stack = Stack(())
    source: Source | None = None

    @property
    def generates(self) -> bool:
        """Whether this is a language model: it decodes, and scores tokens, and reads nothing else."""
        return bool(self.decoder.layers) and self.head.tokens is not None and self.source is None

    @property
    def translates(self) -> bool:
        """Whether this is an encoder-decoder: it reads a source, and scores the tokens of an answer."""
        return self.source is not None

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return int(self.embeddings.token.shape[0])

    @property
    def width(self) -> int:
        """Width ``D`` of the layers."""
        projection = self.embeddings.projection
        return int(projection.kernel.shape[1] if projection else self.embeddings.token.shape[1])

    def describe(self) -> dict[str, int | float | str | bool | None]:
        """Return the architecture in a few plain figures, for the manifest and for people.

        Where the layers of a pruned model differ, a figure is the text "least-most" of them. Of an encoder-decoder `layers` are
        the decoder's, as `vocabulary` and `max_length` are; heads and feed-forward are of both stacks.
        """
        layers = (*self.encoder.layers, *self.decoder.layers)
        first = layers[0]
        figures: dict[str, int | float | str | bool | None] = {
            "layers": len(layers) if self.source is None else len(self.decoder.layers),
            "width": self.width,
            "heads": _extent([layer.attention.heads for layer in layers]),
            "kv_heads": _extent([layer.attention.kv_heads for layer in layers]),
            "head_dim": _extent([layer.attention.head_dim for layer in layers]),
            "feed_forward": _extent([len(layer.feed_forward.down.kernel) for layer in layers]),
            "activation": first.feed_forward.activation,
            "norm": first.norm_placement,
            "vocabulary": self.vocabulary_size,
            "max_length": self.max_length,
        }
        if self.source is not None:
            figures |= self.source.describe() | {"encoder_layers": len(self.encoder.layers)}
        if self.head.tokens is not None:
            return {**figures, "tied": self.head.tokens.table is self.embeddings.token}
        return {**figures, "mask": self.mask, "pooling": self.head.pooling, "output": self.head.output}


def _extent(figures: Sequence[int]) -> int | str:
    """Return the figure that all layers have, or the least and the most."""
    least, most = min(figures), max(figures)
    return least if least == most else f"{least}-{most}"


def parameters(piece: object) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every array of a spec, or of a piece of one, with its path. A shared array comes once, under its first path."""
    seen: set[int] = set()

    def walk(value: object, path: str) -> Iterator[tuple[str, NDArray[Any]]]:
        if isinstance(value, np.ndarray):
            if id(value) not in seen:
                seen.add(id(value))
                yield path, value
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                yield from walk(item, f"{path}.{index}")
        elif is_dataclass(value):
            for entry in fields(value):
                yield from walk(getattr(value, entry.name), f"{path}.{entry.name}" if path else entry.name)

    yield from walk(piece, "")
