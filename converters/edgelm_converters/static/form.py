"""What a static file is asked to be, and what is told about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgelm.bundle.manifest import Signature
from edgelm.errors import RecipeError, unknown_name
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Linear, TransformerSpec
from edgelm_converters.static.encoder import linears
from edgelm_converters.static.ranges import Ranges, Steps

__all__ = ["FloatOperator", "StaticForm", "StaticResult", "static_form", "with_answer"]


@dataclass(frozen=True)
class StaticForm:
    """How a file is quantised.

    Attributes:
        bits: Of activations; weights are int8 in both.
        integer: Everything in integers that the format has an operator for, norms and residuals included, and an answer in
            integers: for accelerators. Otherwise norms, residuals and what follows the last layer's logits are float32.
        keep_float: Names of the linear layers that stay float.
    """

    bits: Literal[8, 16]
    integer: bool
    keep_float: frozenset[str]

    def keeps(self, linear: Linear) -> bool:
        """Return whether a linear layer stays float."""
        return linear.name in self.keep_float or linear.least_bits > 8


@dataclass(frozen=True)
class FloatOperator:
    """Operators that compute in float32.

    Attributes:
        operator: As the format calls it.
        count: How many there are in the signature with the most operators.
        reason: Why they are not in integers.
    """

    operator: str
    count: int
    reason: str


@dataclass(frozen=True)
class StaticResult:
    """A static file.

    Attributes:
        signatures: How it is called.
        operators: How often each operator comes in one pass; conversions between floats and integers included.
        float_operators: Those of them that compute in float32; conversions are not among them.
        samples: Calibration samples that were run.
        tokens: Of them.
        ranges: How the ranges were chosen.
        answer: The steps of the output, where it is in integers.
        notes: What else a user has to know, one line each.
    """

    signatures: tuple[Signature, ...]
    operators: Mapping[str, int]
    float_operators: tuple[FloatOperator, ...]
    samples: int
    tokens: int
    ranges: Ranges
    answer: Steps | None
    notes: tuple[str, ...]


def static_form(spec: TransformerSpec, recipe: str, keep_float: Collection[str], *, integer: bool) -> StaticForm:
    """Return the form that was asked for.

    Raises:
        RecipeError: The recipe has no calibrated ranges, or a name in `keep_float` is of no linear layer.
    """
    known = {known.name: known for known in RECIPES.values() if known.static}
    if recipe not in known:
        raise RecipeError(unknown_name("recipe with calibrated ranges", recipe, known))
    names = {linear.name for linear in linears(spec)}
    for name in keep_float:
        if name not in names:
            raise RecipeError(unknown_name("linear layer", name, names))
    return StaticForm(16 if known[recipe].activations == "int16" else 8, integer, frozenset(keep_float))


def with_answer(signature: Signature, answer: Steps | None) -> Signature:
    """Return a signature whose output is integers in these steps; itself where there are none."""
    if answer is None:
        return signature
    port = replace(signature.outputs[0], dtype=answer.dtype, scale=answer.scale, zero_point=answer.zero_point)
    return replace(signature, outputs=(port,))
