"""How a student is trained: what is compared with its teacher, and at what pace."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgelm.errors import RecipeError
from edgelm_converters.recipes import Recipe, find
from edgelm_converters.spec import TransformerSpec

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """Settings of a training.

    Attributes:
        epochs: Passes over the data.
        batch_size: Samples a step.
        learning_rate: The highest; it rises over the first `warm_up` of the steps and falls to 0 along a cosine.
        warm_up: Share of the steps.
        weight_decay: AdamW's, of kernels and tables (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).
        temperature: What both models' scores are divided by before they are compared.
        soft: Weight of the teacher's answers (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).
        hard: Weight of the labels that the data have, or of a language model's next token.
        hidden: Weight of the states after each layer, through a projection that is learned and then thrown away.
        relations: Weight of the relations of the last layer's queries, keys and values with one another
            (MiniLM, Wang et al. 2020, https://arxiv.org/abs/2002.10957 and https://arxiv.org/abs/2012.15828).
        seed: Of the order of the samples, and of what is not taken from the teacher.
        checkpoint_minutes: Time between two checkpoints; there is one after each epoch anyway.
        recipe: Whose rounding the student is trained for: its products are rounded as the recipe will store them in every
            pass (`edgelm_converters.keras_model.rounded`), and measured so. None trains it as it is.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-4
    warm_up: float = 0.1
    weight_decay: float = 0.01
    temperature: float = 2.0
    soft: float = 1.0
    hard: float = 0.5
    hidden: float = 0.0
    relations: float = 0.0
    seed: int = 0
    checkpoint_minutes: float = 10.0
    recipe: str | None = None

    def check(self) -> None:
        """Raise where a setting makes no sense.

        Raises:
            RecipeError: It does not.
        """
        positive = ("epochs", "batch_size", "learning_rate", "temperature", "checkpoint_minutes")
        least = {name: name in positive for name in self.__dataclass_fields__ if name not in ("seed", "recipe")}
        if self.recipe is not None:
            find(self.recipe)
        for name, above in least.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (above and value == 0):
                raise RecipeError(
                    f"{name.replace('_', '-')} is {value}: it must be {'above 0' if above else '0 or more'}."
                )
        if self.warm_up >= 1:
            raise RecipeError(f"warm-up is {self.warm_up}: it is a share of the steps, below 1.")
        if self.soft == 0 and self.hard == 0:
            raise RecipeError("With soft = 0 and hard = 0 nothing says what the student is to answer: set one above 0.")

    def rounding(self, spec: TransformerSpec) -> Recipe | None:
        """Return the recipe whose rounding a model is trained for; None where it is trained as it is.

        Raises:
            RecipeError: It rounds nothing that training could make up for, or the model scores tokens.
        """
        if self.recipe is None:
            return None
        recipe = find(self.recipe)
        if recipe.weights not in ("int8", "int4"):
            raise RecipeError(
                f"Under {recipe.name} nothing is rounded that training could make up for: give a recipe with integers, or "
                "leave it out."
            )
        if spec.head.tokens is not None:
            raise RecipeError(
                f"'{spec.name}' scores tokens: when it is converted, its weights are rotated and rounded by what its layers "
                "meet, and a training for another rounding does not fit. Distil it without a recipe, and convert it with "
                "--calibration."
            )
        return recipe

    @property
    def watches(self) -> bool:
        """Whether the teacher's inside is compared, and not its answers alone."""
        return self.hidden > 0 or self.relations > 0
