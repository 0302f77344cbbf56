"""Compression recipes: their names, and the bounds that their artifacts are held to.

Names are those of ai-edge-quantizer: ``dynamic_wi8_afp32`` has int8 weights, and float32 activations that are quantised at
run time. Short names map onto them.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.errors import RecipeError, unknown_name

__all__ = ["RECIPES", "SHORT_NAMES", "Recipe", "find"]


@dataclass(frozen=True)
class Recipe:
    """One way to store and compute the weights, with what its artifacts must keep.

    Attributes:
        name: As ai-edge-quantizer writes it.
        summary: What it does, in a few words.
        relative_bound: The largest allowed output error, as a share of the largest absolute reference output.
        agreement: The share of real inputs whose top label must stay the same.
        max_accuracy_drop: The most accuracy that may be lost on labelled data, as a share (0.01 = one point).
        score_bound: As `relative_bound`, of a language model's scores: of the worst token of a whole vocabulary.
        max_perplexity_rise: The most that a language model's perplexity on real text may rise, as a share.
        reason: Where these bounds come from.
        language_only: Whether only language models are written in it.
    """

    name: str
    summary: str
    relative_bound: float
    agreement: float
    max_accuracy_drop: float
    score_bound: float
    max_perplexity_rise: float
    reason: str
    language_only: bool = False


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fp32",
            summary="float32 weights and arithmetic",
            # A dot product of K <= 4096 terms rounds to at most about sqrt(K) * 2^-24 = 4e-6 of its size in practice; some
            # 10 such operations a layer over up to 24 layers add up like a random walk to 6e-5.
            relative_bound=1e-4,
            agreement=0.999,
            max_accuracy_drop=0.001,
            score_bound=1e-4,
            max_perplexity_rise=0.0005,
            reason="float32 rounding of up to 24 layers, summed in another order",
        ),
        Recipe(
            name="fp16",
            summary="float16 weights, float32 arithmetic: half the bytes",
            # A weight is off by at most 2^-11 = 4.9e-4 of itself; the same random walk through 24 layers gives 1e-2.
            relative_bound=1e-2,
            agreement=0.99,
            max_accuracy_drop=0.002,
            score_bound=2e-2,
            max_perplexity_rise=0.002,
            reason="weights rounded to 11 bits",
        ),
        Recipe(
            name="dynamic_wi8_afp32",
            summary="int8 weights, activations quantised at run time: a quarter of the bytes",
            # A weight is off by at most 1/254 of its channel's largest, an activation likewise: 0.4 % each, through up to
            # 24 layers. A model that leaves 15 % was not quantised, it was broken.
            relative_bound=0.15,
            agreement=0.95,
            max_accuracy_drop=0.01,
            # The worst of 50,000 tokens is at 4 sigma where a classifier's worst class is at 2.
            score_bound=0.3,
            max_perplexity_rise=0.03,
            reason="weights and activations rounded to 8 bits, half a step each",
        ),
        Recipe(
            name="dynamic_wi4b32_afp32",
            summary="int4 weights in blocks of 32, activations quantised at run time: a seventh of the bytes",
            # A 4-bit step is 16 times an 8-bit one, blocks take back half of that. What is left is judged by perplexity: on
            # random weights, where no layer corrects another, the scores are off by half of their range.
            relative_bound=1.0,
            agreement=0.8,
            max_accuracy_drop=0.03,
            score_bound=1.0,
            max_perplexity_rise=0.15,
            reason="weights rounded to 4 bits, with a scale for each 32",
            language_only=True,
        ),
    )
}

SHORT_NAMES = {"int8": "dynamic_wi8_afp32", "int4": "dynamic_wi4b32_afp32"}


def find(name: str) -> Recipe:
    """Return the recipe of that name, or of that short name.

    Raises:
        RecipeError: There is none.
    """
    recipe = RECIPES.get(SHORT_NAMES.get(name, name))
    if recipe is None:
        raise RecipeError(unknown_name("recipe", name, [*RECIPES, *SHORT_NAMES]))
    return recipe
