"""Removes what a model needs least: heads, neurons, whole layers, single weights.

Heads, neurons and layers make the artifact smaller and faster on every runtime. Single weights make neither so: see
`Pruning.sparsity`. What stays is refitted on calibration data, layer by layer, so that it makes up for what went
(`edgelm_converters.compress.correction`).

Dimensions: ``n`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import CompressionStep
from edgelm.errors import InputError, RecipeError
from edgelm_converters.compress.calibrate import Chunk, calibration_chunks, stack_of, with_layers
from edgelm_converters.compress.pruning_layers import drift, sparsify_layer
from edgelm_converters.compress.pruning_settings import Pruning
from edgelm_converters.compress.pruning_structure import NEURONS, prune_structure
from edgelm_converters.compress.pruning_units import shares_weights
from edgelm_converters.spec import TransformerSpec, parameters

__all__ = ["NEURONS", "Pruning", "prune"]

Progress = Callable[[str, int, int], None]

_DENSE = (
    "Weights at 0 are stored as any other weight, and no runtime that edgelm writes for skips them: the artifact and its "
    "latency stay as they were, and only a zip of it gets smaller."
)


def prune(
    spec: TransformerSpec,
    pruning: Pruning,
    samples: Sequence[NDArray[np.int32]] | None,
    progress: Progress = lambda step, done, total: None,
    *,
    pad_id: int = 0,
) -> tuple[TransformerSpec, CompressionStep]:
    """Return a smaller model, and the record of what was done.

    Takes the memory of the layers that change once more, and twice the residual stream of the tokens that are used. The arrays
    that do not change are the given model's own.

    Args:
        spec: An encoder or a language model, not prepared for few bits yet.
        pruning: What to remove.
        samples: Token ids of the kind that the model is for, int32 ``(n,)`` each, without padding. Not the data that accuracy
            is measured on. None only with ``score="magnitude"``: nothing is refitted then, and the record says so.
        progress: Called with the step's description, and how much of it is done.
        pad_id: Fills up samples of a model that sees its padding.

    Raises:
        InputError: Samples are needed and there are none, or they do not fit the model.
        RecipeError: The model has nothing of the kind to remove, or too little; the message says what it has.
    """
    _check(spec, pruning)
    needs = [
        what for what, needed in (("layers", pruning.layers), ("scope=global", pruning.scope == "global")) if needed
    ]
    if samples is None and (pruning.score != "magnitude" or needs):
        why = f"score={pruning.score}" if pruning.score != "magnitude" else needs[0]
        remedy = "or take score=magnitude, which needs none and loses more" if not needs else "or leave that out"
        raise InputError(
            f"Pruning with {why} needs calibration data: give texts of the kind that the model is for, {remedy}."
        )
    chunks = [] if samples is None else calibration_chunks(spec, samples, pad_id=pad_id)
    notes: list[str] = []
    smaller = spec
    if pruning.structured:
        smaller = prune_structure(spec, pruning, chunks, notes, progress)
    if pruning.share_at_zero is not None:
        smaller = _sparse(smaller, pruning, chunks, notes, progress)
    return smaller, CompressionStep(
        step="prune",
        settings={
            field.name: value for field in fields(pruning) if (value := getattr(pruning, field.name)) is not None
        },
        parameters_before=sum(array.size for _, array in parameters(spec)),
        parameters_after=sum(array.size for _, array in parameters(smaller)),
        notes=tuple(notes),
    )


def _check(spec: TransformerSpec, pruning: Pruning) -> None:
    """Refuse what cannot be done on this model.

    Raises:
        RecipeError: It says why.
    """
    layers = stack_of(spec).layers
    if spec.encoder.layers and spec.decoder.layers:
        raise RecipeError(f"'{spec.name}' has an encoder and a decoder, and only one stack of layers can be pruned.")
    if any(path.endswith(".turn") or path.endswith(".grid.scale") for layer in layers for path, _ in parameters(layer)):
        raise RecipeError(f"'{spec.name}' was prepared for few bits already: prune it before.")
    if pruning.layers is not None and pruning.layers >= len(layers):
        raise RecipeError(
            f"layers={pruning.layers} leaves nothing of '{spec.name}', which has {len(layers)}: remove fewer."
        )
    within = pruning.heads is not None or pruning.ffn is not None or pruning.share_at_zero is not None
    if within and shares_weights(layers):
        raise RecipeError(
            f"The layers of '{spec.name}' share their weights: what goes in one goes in all, and no refitted kernel suits "
            "each of them. Remove whole layers (layers=...), or distil a smaller model."
        )
    if pruning.scope == "global" and pruning.heads is not None and spec.decoder.layers:
        raise RecipeError(
            "scope=global gives each layer its own number of heads, and a language model's runtimes take one shape of cache "
            "for all layers: leave it out, and each layer loses the same."
        )


def _sparse(
    spec: TransformerSpec, pruning: Pruning, chunks: list[Chunk], notes: list[str], progress: Progress
) -> TransformerSpec:
    """Return a model with single weights at 0, fitted to give what `spec` gives."""
    share, layers = pruning.share_at_zero or 0.0, []
    count = len(stack_of(spec).layers)
    for number, layer in enumerate(stack_of(spec).layers):
        sparse, chunks = sparsify_layer(layer, chunks, share, pattern=pruning.pattern is not None, score=pruning.score)
        layers.append(sparse)
        progress("Setting weights to 0", number + 1, count)
    what = "2 of each 4 weights" if pruning.pattern is not None else f"{share:.0%} of the weights"
    off = f": the output of the last layer is off by {drift(chunks):.1%}" if chunks else ""
    notes.append(f"In each kernel of the layers {what} became 0{off}.")
    notes.append(_DENSE)
    return with_layers(spec, layers)
