"""Checkpoints and tokenizers of llama2.c (https://github.com/karpathy/llama2.c), in its first format.

A checkpoint is seven little-endian int32 (width, feed-forward width, layers, heads, key/value heads, vocabulary, context),
then float32: the embedding, then of all layers together the attention norms, wq, wk, wv, wo, the feed-forward norms, w1, w2
and w3, then the last norm, two tables of rotary cosines and sines, and the output matrix where the vocabulary's size has a
minus sign. Rows are outputs; queries and keys are rotated in pairs.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from edgelm.errors import MissingPackageError, ModelError, TokenizerError
from edgelm_converters.checkpoints.llama import LlamaCheckpoint, LlamaLayer, halves_from_pairs
from edgelm_converters.spec import Float32

__all__ = ["read_llama2c", "read_llama2c_tokenizer"]

_HEADER = struct.Struct("<7i")
_LATER_FORMAT = b"24ka"  # how the later formats begin
_ROPE_BASE = 10_000.0
_NORM_EPS = 1e-5
_UNKNOWN, _START, _END, _FIRST_BYTE, _FIRST_PIECE = 0, 1, 2, 3, 259
_SPACE = "▁"


def read_llama2c(path: Path) -> LlamaCheckpoint:
    """Read a checkpoint.

    Raises:
        ModelError: It cannot be read, is of a later format, or is not of the size that its header says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    if content.startswith(_LATER_FORMAT):
        raise ModelError(f"{path} is a llama2.c checkpoint of version 1 or later: export it with --version 0.")
    if len(content) < _HEADER.size:
        raise ModelError(f"{path} is no llama2.c checkpoint: it has {len(content)} bytes.")
    width, hidden, layers, heads, kv_heads, signed, context = _HEADER.unpack_from(content)
    vocabulary, tied = abs(signed), signed > 0
    if min(width, hidden, layers, heads, kv_heads, vocabulary, context) < 1 or width % heads or heads % kv_heads:
        raise ModelError(f"{path} is no llama2.c checkpoint: its first numbers make no Llama.")
    keys = width // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocabulary, width),
        "attention_norm": (layers, width),
        "query": (layers, width, width),
        "key": (layers, keys, width),
        "value": (layers, keys, width),
        "output": (layers, width, width),
        "feed_forward_norm": (layers, width),
        "gate": (layers, hidden, width),
        "down": (layers, width, hidden),
        "up": (layers, hidden, width),
        "final_norm": (width,),
        "rotary": (2, context, width // heads // 2),
    }
    if not tied:
        shapes["head"] = (vocabulary, width)
    tensors = _split(path, content, shapes)
    stacked = ("attention_norm", "query", "key", "value", "output", "feed_forward_norm", "gate", "up", "down")
    rows = [{name: tensors[name][number] for name in stacked} for number in range(layers)]
    for row in rows:
        row["query"] = halves_from_pairs(row["query"], heads)
        row["key"] = halves_from_pairs(row["key"], kv_heads)
    return LlamaCheckpoint(
        heads=heads,
        kv_heads=kv_heads,
        context_length=context,
        rope_base=_ROPE_BASE,
        norm_eps=_NORM_EPS,
        embedding=tensors["embedding"],
        layers=tuple(LlamaLayer(**row) for row in rows),
        layer_count=layers,
        feed_forward=hidden,
        final_norm=tensors["final_norm"],
        head=tensors.get("head"),
    )


def read_llama2c_tokenizer(path: Path) -> bytes:
    """Read a ``tokenizer.bin``, and return the same as a SentencePiece model.

    The file is an int32 (the longest piece), then of each piece a float32 score, an int32 length and its bytes. Its first
    259 pieces are unknown, start, end and the bytes. Merging the pair with the best score first, after a space in front and
    with bytes for unknown letters, is what SentencePiece's BPE does.

    Raises:
        TokenizerError: It cannot be read, or is cut short.
        MissingPackageError: ``sentencepiece`` is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:
        raise MissingPackageError("sentencepiece", extra="keras-hub", what="reading a llama2.c tokenizer") from error
    pieces = _read_pieces(path)
    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    for index, (text, score) in enumerate(pieces):
        if index == _UNKNOWN:
            model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
        elif index in (_START, _END):
            model.pieces.add(piece="<s>" if index == _START else "</s>", score=0.0, type=kinds.CONTROL)
        elif index < _FIRST_PIECE:
            model.pieces.add(piece=f"<0x{index - _FIRST_BYTE:02X}>", score=0.0, type=kinds.BYTE)
        else:
            model.pieces.add(piece=text.replace(" ", _SPACE), score=score, type=kinds.NORMAL)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = _UNKNOWN, _START, _END, -1
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return bytes(model.SerializeToString())


def _read_pieces(path: Path) -> list[tuple[str, float]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"The tokenizer {path} cannot be read: {error.strerror}.") from error
    pieces: list[tuple[str, float]] = []
    place = 4
    try:
        while place < len(content):
            score, length = struct.unpack_from("<fi", content, place)
            text = content[place + 8 : place + 8 + length]
            if len(text) != length:
                raise TokenizerError(f"The tokenizer {path} is cut short in piece {len(pieces)}: copy it again.")
            pieces.append((text.decode(), float(score)))
            place += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} is no llama2.c tokenizer.bin, or damaged, at piece {len(pieces)}.") from error
    if len(pieces) <= _FIRST_PIECE:
        raise TokenizerError(f"{path} is no llama2.c tokenizer.bin: it has {len(pieces)} pieces, and 259 come first.")
    return pieces


def _split(path: Path, content: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, Float32]:
    """Cut the floats behind the header into tensors, in the order of the shapes."""
    expected = _HEADER.size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(content) != expected:
        raise ModelError(
            f"{path} has {len(content):,} bytes, and its header says {expected:,}: it is cut short, or no llama2.c checkpoint."
        )
    floats = np.frombuffer(content, "<f4", offset=_HEADER.size).astype(np.float32, copy=False)
    tensors = {}
    place = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tensors[name] = floats[place : place + size].reshape(shape)
        place += size
    return tensors
