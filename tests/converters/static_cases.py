"""What the tests of static files share: specs with every option, the oracle with rounded weights, and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from edgelm_converters.emit.quantize import quantize_weight
from edgelm_converters.spec import Float32, Linear, Norm, TransformerSpec
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_inputs, random_spec

__all__ = ["LENGTHS", "OPTIONS", "answer", "error", "make", "rounded", "samples", "tolerance"]

LENGTHS = (8, 16)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first": {"pooling": "first"},
    "first, shared layers": {"pooling": "first", "shared_layers": True, "layers": 3},
    "first, pre-norm": {"pooling": "first", "norm_placement": "pre", "final_norm": True},
    "first, causal, grouped": {"pooling": "first", "causal": True, "heads": 4, "kv_heads": 2},
    "max": {"pooling": "max"},
    "mean, unmasked": {"pooling_masked": False},
    "sequence": {"pooling": "none", "head": (), "output": "raw"},
    "no mask": {"mask": "none"},
    "mask input, segments": {"mask": "input", "segments": 2},
    "rms, gated, grouped, causal": {
        "norm": "rms", "norm_placement": "pre", "gated": True, "activation": "silu", "heads": 4, "kv_heads": 1,
        "causal": True, "biases": False,
    },
    "narrow embeddings": {"embedding_width": 24, "token_scale": 4.0},
    "no positions, no norm": {"positions": None, "embedding_norm": False, "token_scale": 2.0},
    "relu": {"activation": "relu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "probabilities": {"output": "probabilities"},
    "sigmoid": {"output": "sigmoid", "activation": "sigmoid"},
}  # fmt: skip


def make(name: str) -> TransformerSpec:
    """Return the spec of that name in `OPTIONS`."""
    return random_spec(width=32, feed_forward=64, **OPTIONS[name])


def samples(spec: TransformerSpec, count: int = 32) -> list[dict[str, NDArray[np.int32]]]:
    """Return calibration inputs of all lengths, without padding."""
    return [random_inputs(spec, 1 + seed % LENGTHS[-1], seed=seed) for seed in range(count)]


def rounded(spec: TransformerSpec, *, tables: bool) -> TransformerSpec:
    """Return the spec with every kernel, and with `tables` every table, norm's gamma and beta, as int8 holds it."""
    known: dict[int, Any] = {}

    def walk(piece: Any) -> Any:
        if id(piece) not in known:
            known[id(piece)] = piece, change(piece)  # the piece is kept, and with it its id
        return known[id(piece)][1]

    def change(piece: Any) -> Any:
        if isinstance(piece, Linear):
            values, scale = quantize_weight(piece.kernel, axis=1)
            return replace(piece, kernel=values * scale)
        if isinstance(piece, Norm) and tables:
            beta = None if piece.beta is None else _whole(piece.beta)
            return replace(piece, gamma=_whole(piece.gamma), beta=beta)
        if isinstance(piece, tuple):
            return tuple(walk(part) for part in piece)
        if hasattr(piece, "__dataclass_fields__"):
            changed = {name: walk(getattr(piece, name)) for name in piece.__dataclass_fields__}
            return replace(piece, **changed)
        return piece

    made: TransformerSpec = walk(spec)
    if tables:
        parts = made.embeddings
        held = {
            name: None if table is None else _whole(table)
            for name, table in (("token", parts.token), ("position", parts.position), ("segment", parts.segment))
        }
        made = replace(made, embeddings=replace(parts, **held))  # type: ignore[arg-type]
    return made


def answer(spec: TransformerSpec, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return the oracle's answer, batch 1, without the batch."""
    return forward(spec, inputs)[0]


def error(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """Return the root mean square of what is between answers and those wanted, as a share of the wanted ones'."""
    between = np.concatenate([np.ravel(mine - wanted) for mine, wanted in pairs])
    wanted = np.concatenate([np.ravel(wanted) for _, wanted in pairs])
    return float(np.sqrt(np.square(between).mean() / np.square(wanted).mean()))


def tolerance(bits: int, *, integer: bool) -> float:
    """Return the largest `error` allowed.

    A step is 1/255 (1/16383 in 16 bits, one of which is free) of a range of typically 6 standard deviations of a tensor, and
    rounding has a standard deviation of step / sqrt(12): 0.7 % of the tensor's. Some 10 tensors a layer are rounded, and
    6 more inside of each norm that is in integers; over two or three layers and a head they add up like a random walk,
    sqrt(25) = 5, or sqrt(64) = 8. A head whose outputs cancel to half of their terms doubles that.
    """
    steps = 255 if bits == 8 else 16383
    return float(2 * (8 if integer else 5) * 6 / steps / np.sqrt(12))


def _whole(values: Float32) -> Float32:
    scale = np.abs(values).max() / np.float32(127)
    return (np.rint(values / scale) * scale).astype(np.float32)
