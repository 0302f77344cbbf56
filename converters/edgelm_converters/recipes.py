"""Compression recipes: their names, and the bounds that their artifacts are held to.

Names are those of ai-edge-quantizer: ``dynamic_wi8_afp32`` has int8 weights, and float32 activations that are quantised at
run time. Short names map onto them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgelm.errors import RecipeError, unknown_name

__all__ = ["RECIPES", "SHORT_NAMES", "Bounds", "Recipe", "find"]


@dataclass(frozen=True)
class Bounds:
    """What an artifact must keep of its model.

    Attributes:
        relative: The largest allowed output error, as a share of the largest absolute reference output.
        agreement: The share of real inputs whose top label must stay the same.
        accuracy_drop: The most accuracy that may be lost on labelled data, as a share (0.01 = one point).
        score: As `relative`, of a language model's scores: of the worst token of a whole vocabulary.
        perplexity_rise: The most that a language model's perplexity on real text may rise, as a share.
        reason: Where these bounds come from.
    """

    relative: float
    agreement: float
    accuracy_drop: float
    score: float
    perplexity_rise: float
    reason: str


@dataclass(frozen=True)
class Recipe:
    """One way to store and compute the weights, with what its artifacts must keep.

    Attributes:
        name: As ai-edge-quantizer writes it.
        summary: What it does, in a few words.
        weights: How the kernels are stored.
        activations: How they are computed with: ``float32``; ``dynamic``: rounded to int8 with a scale found at run time;
            ``int8`` and ``int16``: whole layers in integers, with ranges that were calibrated.
        block: Inputs that share a scale of 4-bit weights; None where it is one scale a channel.
        bounds: What the artifact must keep.
    """

    name: str
    summary: str
    weights: Literal["float32", "float16", "int8", "int4"]
    activations: Literal["float32", "dynamic", "int8", "int16"]
    block: int | None
    bounds: Bounds

    @property
    def static(self) -> bool:
        """Whether it needs calibrated ranges."""
        return self.activations in ("int8", "int16")


# A dot product of K <= 4096 terms rounds to at most about sqrt(K) * 2^-24 = 4e-6 of its size in practice; some 10 such
# operations a layer over up to 24 layers add up like a random walk to 6e-5.
_FLOAT32 = Bounds(1e-4, 0.999, 0.001, 1e-4, 0.0005, "float32 rounding of up to 24 layers, summed in another order")
# A weight is off by at most 2^-11 = 4.9e-4 of itself; the same random walk through 24 layers gives 1e-2.
_FLOAT16 = Bounds(1e-2, 0.99, 0.002, 2e-2, 0.002, "weights rounded to 11 bits")
# A weight is off by at most 1/254 of its channel's largest, an activation likewise: 0.4 % each, through up to 24 layers. A
# model that leaves 15 % was not quantised, it was broken. The worst of 50,000 tokens is at 4 sigma where a classifier's worst
# class is at 2.
_INT8 = Bounds(0.15, 0.95, 0.01, 0.3, 0.03, "weights and activations rounded to 8 bits, half a step each")
_WEIGHTS8 = Bounds(0.1, 0.97, 0.01, 0.2, 0.02, "weights rounded to 8 bits, half a step each")
# A 4-bit step is 16 times an 8-bit one, blocks take back half of that. What is left is judged by the task: on random weights,
# where no layer corrects another, the scores are off by half of their range.
_INT4 = Bounds(1.0, 0.8, 0.03, 1.0, 0.15, "weights rounded to 4 bits, with a scale for each block of inputs")
# Every tensor between two operators is rounded too, with one scale for all of it, found on other inputs.
_STATIC8 = Bounds(0.5, 0.9, 0.02, 0.6, 0.2, "weights and every activation rounded to 8 bits, in calibrated ranges")
_STATIC16 = Bounds(
    0.15, 0.95, 0.01, 0.3, 0.03, "weights rounded to 8 bits and every activation to 16, in calibrated ranges"
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", "float32 weights and arithmetic", "float32", "float32", None, _FLOAT32),
        Recipe("fp16", "float16 weights, float32 arithmetic: half the bytes", "float16", "float32", None, _FLOAT16),
        Recipe(
            "dynamic_wi8_afp32",
            "int8 weights, activations quantised at run time: a quarter of the bytes",
            "int8", "dynamic", None, _INT8,
        ),
        Recipe(
            "weight_only_wi8_afp32",
            "int8 weights, float32 arithmetic: a quarter of the bytes, float32's accuracy and speed",
            "int8", "float32", None, _WEIGHTS8,
        ),
        *(
            Recipe(
                f"dynamic_wi4b{block}_afp32",
                f"int4 weights in blocks of {block}, activations quantised at run time: a fifth to a seventh of the bytes",
                "int4", "dynamic", block, _INT4,
            )
            for block in (32, 64, 128)
        ),
        Recipe(
            "static_wi8_ai8",
            "int8 weights and activations, in calibrated ranges: what an Edge TPU or an NPU runs",
            "int8", "int8", None, _STATIC8,
        ),
        Recipe(
            "static_wi8_ai16",
            "int8 weights, int16 activations, in calibrated ranges: for NPUs that have 16 bits",
            "int8", "int16", None, _STATIC16,
        ),
    )
}  # fmt: skip

SHORT_NAMES = {"int8": "dynamic_wi8_afp32", "int4": "dynamic_wi4b32_afp32", "full-int8": "static_wi8_ai8"}


def find(name: str) -> Recipe:
    """Return the recipe of that name, or of that short name.

    Raises:
        RecipeError: There is none.
    """
    recipe = RECIPES.get(SHORT_NAMES.get(name, name))
    if recipe is None:
        raise RecipeError(unknown_name("recipe", name, [*RECIPES, *SHORT_NAMES]))
    return recipe
