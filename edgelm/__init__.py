"""edgelm puts a trained Keras Transformer onto edge hardware, and proves how it runs there.

>>> import edgelm
>>> edgelm.convert("intents.keras", "intents.edgelm", tokenizer="tokenizer.json")   # on a workstation
>>> session = edgelm.load("intents.edgelm")                                          # on a device
>>> session.classify("Where is my card?").label
>>> for piece in edgelm.load("stories.edgelm").generate("Once upon a time"):          # of a language model
...     print(piece, end="", flush=True)

Everything is imported on first use: ``import edgelm`` costs a few milliseconds and loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgelm.errors import EdgelmError

if TYPE_CHECKING:
    from edgelm_converters import convert
    from edgelm_runtimes import load, verify

    from edgelm.bench import benchmark

__all__ = ["EdgelmError", "__version__", "benchmark", "convert", "load", "verify"]

__version__ = "0.1.0"


# name -> where it is. A device has no conversion tools, so each is imported alone.
_NAMES = {
    "benchmark": "edgelm.bench",
    "convert": "edgelm_converters",
    "load": "edgelm_runtimes",
    "verify": "edgelm_runtimes",
}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'edgelm' has no attribute '{name}'")
