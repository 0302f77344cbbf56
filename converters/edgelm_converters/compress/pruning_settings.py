"""What a pruning removes, as a user says it: ``heads=0.25,ffn=0.3,layers=2``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from edgelm.errors import RecipeError, unknown_name

__all__ = ["Pruning", "Score"]

Score = Literal["obs", "activation", "magnitude"]

_SCORES: tuple[Score, ...] = ("obs", "activation", "magnitude")


@dataclass(frozen=True)
class Pruning:
    """What to remove.

    Attributes:
        heads: Share of the attention heads, in (0, 1). Where query heads share a key/value head they go together.
        ffn: Share of the feed-forward's neurons; what stays is a multiple of 32 (`NEURONS`).
        layers: Number of whole layers.
        sparsity: Share of single weights that become 0, in every kernel of the layers. The artifacts store them like any
            other: neither size nor latency changes, only what a zip makes of it.
        pattern: 2:4: of each 4 inputs that follow each other, 2 weights are 0. Means a sparsity of 0.5.
        scope: "layer": each layer loses the same share; "global": the cheapest of all layers go, at least one head and 32
            neurons stay in each.
        score: How units are chosen (`edgelm_converters.compress.importance`).
        correct: Whether what stays is refitted on the calibration data.
    """

    heads: float | None = None
    ffn: float | None = None
    layers: int | None = None
    sparsity: float | None = None
    pattern: Literal["2:4"] | None = None
    scope: Literal["layer", "global"] = "layer"
    score: Score = "obs"
    correct: bool = True

    def __post_init__(self) -> None:
        for name in ("heads", "ffn", "sparsity"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise RecipeError(
                    f"{name}={share:g} is no share to remove: give a number between 0 and 1, such as 0.25."
                )
        if self.layers is not None and self.layers < 1:
            raise RecipeError(
                f"layers={self.layers} is no number of layers to remove: give 1 or more, or leave it out."
            )
        if self.pattern is not None and self.sparsity not in (None, 0.5):
            raise RecipeError(
                f"pattern=2:4 is a sparsity of 0.5, and sparsity={self.sparsity:g} was asked for: leave it out."
            )
        if (self.heads, self.ffn, self.layers, self.sparsity, self.pattern) == (None,) * 5:
            raise RecipeError(
                "Nothing is to be pruned: give some of heads, ffn, layers, sparsity and pattern, as in heads=0.25,ffn=0.3."
            )
        if self.scope == "global" and self.heads is None and self.ffn is None:
            raise RecipeError("scope=global ranks heads and neurons, and neither is to be pruned: leave it out.")

    @classmethod
    def parse(cls, text: str) -> Pruning:
        """Return the pruning of a text such as ``heads=0.25,ffn=0.3,layers=2,sparsity=0.5,pattern=2:4``.

        Raises:
            RecipeError: A key is unknown or given twice, a value is none, or it makes no sense.
        """
        values: dict[str, float | int | str | bool] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in entry.partition("="))
            known = [field.name for field in fields(cls)]
            if key not in known:
                raise RecipeError(unknown_name("part of a model that can be pruned", key, known))
            if not equals or not value:
                raise RecipeError(f"'{entry}' says no value: write it as in heads=0.25.")
            if key in values:
                raise RecipeError(f"'{key}' is given twice: give it once.")
            values[key] = _value(key, value)
        return cls(**values)  # type: ignore[arg-type]  # each was read as its own type

    @property
    def share_at_zero(self) -> float | None:
        """Share of single weights that become 0; None where none is to."""
        return 0.5 if self.pattern is not None else self.sparsity

    @property
    def structured(self) -> bool:
        """Whether heads, neurons or layers go."""
        return (self.heads, self.ffn, self.layers) != (None, None, None)


def _value(key: str, value: str) -> float | int | str | bool:
    words: dict[str, tuple[str, ...]] = {"pattern": ("2:4",), "scope": ("layer", "global"), "score": _SCORES}
    if key in words:
        if value not in words[key]:
            raise RecipeError(unknown_name(key, value, words[key]))
        return value
    if key == "correct":
        if value.lower() not in ("true", "false"):
            raise RecipeError(f"correct={value}: give true or false.")
        return value.lower() == "true"
    try:
        return int(value) if key == "layers" else float(value)
    except ValueError as error:
        kind = "a whole number" if key == "layers" else "a number between 0 and 1"
        raise RecipeError(f"{key}={value}: give {kind}.") from error
