"""Workstation side of edgelm: a Keras model becomes a compressed, verified bundle. TensorFlow is needed here only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm_converters.conversion import Conversion, convert

__all__ = ["Conversion", "convert"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("edgelm_converters.conversion"), name)
    raise AttributeError(f"module 'edgelm_converters' has no attribute '{name}'")
