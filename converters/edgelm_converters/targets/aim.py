"""What a target chooses of a conversion, and which of the user's choices it refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgelm.bundle.manifest import Format
from edgelm.errors import RecipeError
from edgelm_converters.chain import Chain
from edgelm_converters.lengths import Lengths
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.targets.table import Target

__all__ = ["Aim", "aim_at", "aim_note", "refuse_model"]


@dataclass(frozen=True)
class Aim:
    """What is made for a target: a chain, and formats; None of them leaves it to the model."""

    chain: Chain
    formats: tuple[Format, ...] | None


def aim_at(target: Target, chain: Chain, formats: tuple[Format, ...] | None) -> Aim:
    """Return what to make for a target, of what the user asks for.

    Raises:
        RecipeError: The recipe or a format is not one that it takes.
    """
    recipe = chain.recipe.name
    if target.recipes is not None and recipe not in target.recipes:
        raise RecipeError(
            f"--for {target.name} takes no {recipe}: {target.reason}. Leave --recipe out, or give "
            f"{' or '.join(target.recipes)}."
        )
    if target.formats is not None:
        for name in formats or ():
            if name not in target.formats:
                raise RecipeError(
                    f"--for {target.name} takes no {name} file: what runs there opens {' and '.join(target.formats)}. Leave "
                    "--to out."
                )
    return Aim(
        chain=replace(chain, integer_io=True) if target.integer_io else chain,
        formats=target.formats if formats is None else formats,
    )


def refuse_model(target: Target, spec: TransformerSpec | None, reason: str | None) -> None:
    """Refuse a model that was not tried on a target.

    Args:
        target: The target.
        spec: The model; None where it is to be traced.
        reason: Why it is to be traced.

    Raises:
        RecipeError: It says which.
    """
    if spec is None:
        if target.recognised_only:
            raise RecipeError(
                f"--for {target.name} is for models that edgelm recognises, whose every operator it chooses, and this one "
                f"would be traced ({reason}): convert it without --for."
            )
    elif target.encoders_only and (spec.generates or spec.translates):
        raise RecipeError(
            f"--for {target.name} is for encoders: no model that writes text was tried there. Convert it without --for."
        )


def aim_note(target: Target, chain: Chain, formats: tuple[Format, ...], lengths: Lengths) -> str:
    """Return what was chosen for a target, a line for the manifest."""
    chosen = [", ".join(formats), chain.recipe.name]
    if target.integer_io:
        chosen.append("integers at its outputs too")
    if target.one_length and lengths.maximum is not None:
        chosen.append(f"one fixed length of {lengths.maximum} tokens at batch 1")
    return f"Made for {target.name}: {'; '.join(chosen)}."
