"""Readers: from a Keras model to a `TransformerSpec`, one module a family.

A reader is a function ``read(model, sequence_length) -> TransformerSpec`` that raises `NotRecognised` for every model that
it cannot represent exactly. The table names them in the order in which they are asked; each is imported when it is asked.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from edgelm_converters.spec import TransformerSpec

__all__ = ["READERS", "NotRecognised", "Recognition", "recognise"]

READERS: tuple[tuple[str, str], ...] = (
    ("edgelm", "edgelm_converters.families.edgelm_model:read"),
    ("bert", "edgelm_converters.families.bert:read"),
    ("distilbert", "edgelm_converters.families.distilbert:read"),
    ("roberta", "edgelm_converters.families.roberta:read"),
    ("albert", "edgelm_converters.families.albert:read"),
    ("gpt2", "edgelm_converters.families.gpt2:read"),
    ("llama", "edgelm_converters.families.llama:read"),
    ("mistral", "edgelm_converters.families.mistral:read"),
    ("gemma", "edgelm_converters.families.gemma:read"),
    ("gemma3", "edgelm_converters.families.gemma3:read"),
    ("qwen", "edgelm_converters.families.qwen:read"),
    ("qwen3", "edgelm_converters.families.qwen3:read"),
    ("phi3", "edgelm_converters.families.phi3:read"),
    ("t5", "edgelm_converters.families.t5:read"),
    ("bart", "edgelm_converters.families.bart:read"),
    ("whisper", "edgelm_converters.families.whisper:read"),
    ("plain", "edgelm_converters.families.plain:read"),
)

_HUB_PACKAGES = ("kerashub", "kerasnlp")  # without the underscore


class NotRecognised(Exception):  # noqa: N818 - an answer, not an error
    """A model, or a part of one, that a reader cannot represent exactly. The message is one sentence: what was met where.

    It is no `EdgelmError`: a model that is not recognised is still converted, by tracing.
    """


@dataclass(frozen=True)
class Recognition:
    """What the readers say of a model.

    Attributes:
        spec: The model as a spec; None where no reader took it.
        family: The reader that took it; None where none did.
        reason: Why it was not recognised, in one sentence; None where it was.
    """

    spec: TransformerSpec | None
    family: str | None
    reason: str | None


def recognise(model: Any, sequence_length: int | None) -> Recognition:
    """Ask each reader of the table, and return the first answer that is a spec.

    Where none takes the model, the reason is that of the family whose KerasHub classes it is made of. Another language model
    of KerasHub is told which of its layers no reader knows. For any other model it is the reason of the table's last reader,
    which takes models of plain Keras layers.

    Args:
        model: A ``keras.Model``. It is not changed.
        sequence_length: The most tokens that the user wants, or None.

    Raises:
        ModelError: A reader knows the model, and it has fewer positions than `sequence_length`.
    """
    reasons: dict[str, str] = {}
    for family, target in READERS:
        module, function = target.split(":")
        try:
            return Recognition(getattr(importlib.import_module(module), function)(model, sequence_length), family, None)
        except NotRecognised as error:
            reasons[family] = str(error)
    nearest = _nearest_family(model)
    if nearest is not None:
        return Recognition(None, None, reasons[nearest])
    unread = importlib.import_module("edgelm_converters.families.keras_hub_unread")
    return Recognition(None, None, unread.unread_part(model) or reasons[READERS[-1][0]])


def _nearest_family(model: Any) -> str | None:
    """Return the family that KerasHub keeps the model's class with; None for any other model.

    A class that KerasHub keeps elsewhere may stand on a family's (Llama 3's on Llama's): then it is that one's.
    """
    families = {family for family, _ in READERS}
    for kind in type(model).__mro__:
        package, *path = kind.__module__.replace("_", "").split(".")  # keras_hub.src.models.distil_bert.…
        if package in _HUB_PACKAGES and path[1:2] == ["models"] and path[2] in families:
            return path[2]
    return None
