"""Llamas in GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), decompressed to float32.

llama.cpp's converter puts the rows of queries and keys in the order for rotation in pairs; here they go back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from edgelm.errors import MissingPackageError, ModelError, TokenizerError
from edgelm_converters.checkpoints.llama import LlamaCheckpoint, LlamaLayer, halves_from_pairs
from edgelm_converters.spec import Float32

__all__ = ["Gguf", "read_gguf"]

_CONTROL = 3
_ROPE_BASE = 10_000.0  # where the file says nothing
# How a text is cut into words before anything is merged, by llama.cpp's name for it.
_SPLITS: dict[str, tuple[pre_tokenizers.PreTokenizer, ...]] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
}
_ROWS = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


@dataclass(frozen=True, eq=False)
class Gguf:
    """What a GGUF file holds.

    Attributes:
        name: The model's own name.
        checkpoint: Its weights. The layers are decompressed as they are asked for, so that one is in memory at a time.
        tokenizer: Its byte-pair vocabulary; the start token comes first where the file says so.
        chat_template: Jinja; None where it has none.
    """

    name: str
    checkpoint: LlamaCheckpoint
    tokenizer: Tokenizer
    chat_template: str | None


def read_gguf(path: Path) -> Gguf:
    """Read a model of the architecture ``llama`` with a byte-pair vocabulary.

    Raises:
        ModelError: It cannot be read, is of another architecture, or lacks a tensor.
        TokenizerError: Its vocabulary is of another kind.
        MissingPackageError: ``gguf`` is not installed.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise MissingPackageError("gguf", extra="examples", what="reading a GGUF file") from error
    if not path.is_file():
        raise ModelError(f"There is no GGUF file at {path}.")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"{path} is no GGUF file, or it is cut short ({error}): fetch it again.") from error
    fields = _Fields(path, reader)
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{path} holds the architecture {architecture!r}: only 'llama' is read.")
    return Gguf(
        name=str(fields.get("general.name", path.stem)),
        checkpoint=_read_checkpoint(fields),
        tokenizer=_read_tokenizer(fields),
        chat_template=fields.get("tokenizer.chat_template"),
    )


class _Fields:
    """The keys and tensors of a file, by name."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path = path
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields[name].contents() if name in self._fields else default

    def need(self, name: str) -> Any:
        if name not in self._fields:
            raise ModelError(f"{self.path} does not say '{name}': it is damaged, or of another kind.")
        return self._fields[name].contents()

    def has_tensor(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> Float32:
        """Return a tensor, decompressed; rows are outputs."""
        from gguf import dequantize

        if name not in self._tensors:
            raise ModelError(f"{self.path} has no tensor '{name}': it is damaged, or of another kind.")
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ModelError(f"{self.path}: the compression {tensor.tensor_type.name} is not supported.") from error
        return np.asarray(values, np.float32)


def _read_checkpoint(fields: _Fields) -> LlamaCheckpoint:
    heads = int(fields.need("llama.attention.head_count"))
    kv_heads = int(fields.get("llama.attention.head_count_kv", heads))
    count = int(fields.need("llama.block_count"))

    def layers() -> Iterator[LlamaLayer]:
        for number in range(count):
            rows = {name: fields.tensor(f"blk.{number}.{tensor}.weight") for name, tensor in _ROWS.items()}
            rows["query"] = halves_from_pairs(rows["query"], heads)
            rows["key"] = halves_from_pairs(rows["key"], kv_heads)
            yield LlamaLayer(**rows)

    return LlamaCheckpoint(
        heads=heads,
        kv_heads=kv_heads,
        context_length=int(fields.need("llama.context_length")),
        rope_base=float(fields.get("llama.rope.freq_base", _ROPE_BASE)),
        norm_eps=float(fields.need("llama.attention.layer_norm_rms_epsilon")),
        embedding=fields.tensor("token_embd.weight"),
        layers=_Lazy(layers),
        layer_count=count,
        feed_forward=int(fields.need("llama.feed_forward_length")),
        final_norm=fields.tensor("output_norm.weight"),
        head=fields.tensor("output.weight") if fields.has_tensor("output.weight") else None,
    )


class _Lazy:
    """An iterable that can be gone through again, made of a function that returns an iterator."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __iter__(self) -> Iterator[LlamaLayer]:
        return iter(self._make())


def _read_tokenizer(fields: _Fields) -> Tokenizer:
    kind, split = fields.need("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        raise TokenizerError(
            f"{fields.path} has a vocabulary of the kind {kind!r}, split as {split!r}: only byte pairs (gpt2) split as one of "
            f"{', '.join(_SPLITS)} are read."
        )
    tokens = fields.need("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in fields.need("tokenizer.ggml.merges")]
    result = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    result.pre_tokenizer = pre_tokenizers.Sequence(list(_SPLITS[split]))
    result.decoder = decoders.ByteLevel()
    kinds = fields.need("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    if fields.get("tokenizer.ggml.add_bos_token", default=False):
        start = int(fields.need("tokenizer.ggml.bos_token_id"))
        result.post_processor = processors.TemplateProcessing(
            single=[f"{tokens[start]}:0", "$A:0"], special_tokens=[(tokens[start], start)]
        )
    return result
