"""Why a language model of KerasHub is not read: the part of Mixtral, Falcon, Bloom and others that no reader knows."""

from __future__ import annotations

from typing import Any

from edgelm_converters.families.keras_hub_layers import PACKAGES

__all__ = ["unread_part"]

_KNOWN = "GPT-2, Llama, Mistral, Gemma, Gemma 3, Qwen 2.5, Qwen 3, Phi-3, T5, BART or Whisper"


def unread_part(model: Any) -> str | None:
    """Return in one sentence which layer of a language model of KerasHub edgelm does not read.

    A mixture of experts is named where there is one: that is the layer that differs from a known family's.

    Args:
        model: Anything that no reader took.

    Returns:
        None for a model that is no language model of KerasHub: the readers' own reasons say more of it.
    """
    if not any(kind.__name__ == "CausalLM" and _is_of_keras_hub(kind) for kind in type(model).__mro__):
        return None
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer)
        # The part of the names that Mixtral's, Qwen's and GPT-OSS's have in common.
        if kind.__name__.lower().endswith("moeblock") and _is_of_keras_hub(kind):
            return f"The layer '{layer.path}' is a {kind.__name__}, and one feed-forward without experts was expected."
    layers = getattr(model.backbone, "transformer_layers", None)
    if not layers:
        return None
    return (
        f"The layer '{layers[0].path}' is a {type(layers[0]).__name__}, and a decoder layer of {_KNOWN} was expected."
    )


def _is_of_keras_hub(kind: type) -> bool:
    return kind.__module__.split(".")[0] in PACKAGES
