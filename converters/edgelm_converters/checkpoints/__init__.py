"""Checkpoints of other programs as KerasHub models: the Llama architecture in llama2.c's format and in GGUF."""

from __future__ import annotations

from edgelm_converters.checkpoints.gguf import Gguf, read_gguf
from edgelm_converters.checkpoints.llama import LlamaCheckpoint, LlamaLayer, to_keras_hub
from edgelm_converters.checkpoints.llama2c import read_llama2c, read_llama2c_tokenizer

__all__ = [
    "Gguf",
    "LlamaCheckpoint",
    "LlamaLayer",
    "read_gguf",
    "read_llama2c",
    "read_llama2c_tokenizer",
    "to_keras_hub",
]
