"""llama2.c in NumPy, from the description of its formats: what a checkpoint computes, and how its tokenizer reads a text.

Nothing of the product is used. Everything is in float64, and positions are rotated in pairs ``(2i, 2i+1)`` as llama2.c does.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["encode", "forward", "parse", "read_vocabulary"]

Float64 = NDArray[np.float64]


def parse(content: bytes) -> dict[str, Any]:
    """Return the header's numbers and the tensors of a checkpoint of version 0."""
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", content)
    values = np.frombuffer(content, "<f4", offset=28).astype(np.float64)
    key_dim = dim // heads * kv_heads
    result: dict[str, Any] = {"dim": dim, "layers": layers, "heads": heads, "kv_heads": kv_heads}
    place = 0
    for name, shape in (
        ("embedding", (abs(vocabulary), dim)),
        ("norm1", (layers, dim)),
        ("wq", (layers, dim, dim)),
        ("wk", (layers, key_dim, dim)),
        ("wv", (layers, key_dim, dim)),
        ("wo", (layers, dim, dim)),
        ("norm2", (layers, dim)),
        ("w1", (layers, hidden, dim)),
        ("w2", (layers, dim, hidden)),
        ("w3", (layers, hidden, dim)),
        ("norm", (dim,)),
    ):
        size = int(np.prod(shape))
        result[name] = values[place : place + size].reshape(shape)
        place += size
    place += context * (dim // heads)  # the rotary tables
    result["head"] = result["embedding"] if vocabulary > 0 else values[place:].reshape(-vocabulary, dim)
    return result


def _norm(x: Float64, weight: Float64) -> Float64:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * weight


def _rotate(x: Float64) -> Float64:
    """Turn ``(n, heads, A)`` by its position, in pairs."""
    n, _, width = x.shape
    angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def forward(model: dict[str, Any], ids: list[int]) -> Float64:
    """Return the scores ``(n, V)`` after each id."""
    n, heads, kv_heads = len(ids), model["heads"], model["kv_heads"]
    width = model["dim"] // heads
    x = model["embedding"][ids]
    for layer in range(model["layers"]):
        y = _norm(x, model["norm1"][layer])
        query = _rotate((y @ model["wq"][layer].T).reshape(n, heads, width))
        key = _rotate((y @ model["wk"][layer].T).reshape(n, kv_heads, width))
        value = (y @ model["wv"][layer].T).reshape(n, kv_heads, width)
        mixed = np.zeros((n, heads, width))
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = query[:, head] @ key[:, shared].T / np.sqrt(width)
            scores[np.triu_indices(n, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ value[:, shared]
        x = x + mixed.reshape(n, -1) @ model["wo"][layer].T
        y = _norm(x, model["norm2"][layer])
        gate = y @ model["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ model["w3"][layer].T)) @ model["w2"][layer].T
    return _norm(x, model["norm"]) @ model["head"].T


def read_vocabulary(path: Path) -> list[tuple[str, float]]:
    """Return the pieces and scores of a ``tokenizer.bin``."""
    content = path.read_bytes()
    pieces, place = [], 4
    while place < len(content):
        score, length = struct.unpack_from("<fi", content, place)
        pieces.append((content[place + 8 : place + 8 + length].decode(), score))
        place += 8 + length
    return pieces


def encode(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """Return the ids of a text, without the start token, as ``encode`` of run.c makes them.

    A space goes in front; a letter that is no piece becomes its bytes, whose pieces begin at 3; then the neighbours that make
    the piece with the best score are merged, the leftmost first, until none do.
    """
    index = {piece: number for number, (piece, _) in enumerate(pieces)}
    ids: list[int] = []
    for letter in f" {text}" if text else "":
        ids += [index[letter]] if letter in index else [byte + 3 for byte in letter.encode()]
    while True:
        best, where = -1e10, -1
        for place in range(len(ids) - 1):
            merged = index.get(pieces[ids[place]][0] + pieces[ids[place + 1]][0])
            if merged is not None and pieces[merged][1] > best:
                best, where = pieces[merged][1], place
        if where < 0:
            return ids
        ids[where : where + 2] = [index[pieces[ids[where]][0] + pieces[ids[where + 1]][0]]]
