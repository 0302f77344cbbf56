"""Which mask the layers of a plain model have: one for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgelm_converters.families import NotRecognised
from edgelm_converters.keras_graph import Node
from edgelm_converters.keras_masks import Mask

__all__ = ["padding_of"]


def padding_of(
    masks: Sequence[tuple[Node, Mask | None]], token: str, lookups: dict[str, Node], pooling: Mask | None = None
) -> tuple[Literal["input", "nonzero", "none"], str | None]:
    """Return what kind of mask a model has, as a spec says it, and the name of its input where it has one.

    Args:
        masks: The padding that each attention hides from itself.
        token: The input that holds the tokens.
        lookups: The embeddings of inputs, by the input's name.
        pooling: The pooling's mask.

    Raises:
        NotRecognised: They are not one mask for all, or it is made of something else.
    """
    node, first = masks[0]
    source = first.source if first else None
    for other, mask in masks[1:]:
        if (mask.source if mask else None) != source:
            raise NotRecognised(f"{node.describe()} and {other.describe()} do not have the same mask")
    if pooling is not None and pooling.source != source:
        raise NotRecognised(f"the pooling has the mask of '{pooling.source}', and {node.describe()} has not")
    if source is None:
        return "none", None
    if source != token:
        if source in lookups:
            raise NotRecognised(
                f"the mask is made of '{source}', which {lookups[source].describe()} looks up as segments"
            )
        return "input", source
    if not all(mask.compared for mask in [*(mask for _, mask in masks), pooling] if mask):
        raise NotRecognised(f"the ids '{token}' themselves are the mask of {node.describe()}, and not ids != 0")
    return "nonzero", None
