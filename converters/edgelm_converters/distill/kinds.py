"""What a model's answers are, which decides how two of them are compared."""

from __future__ import annotations

from typing import Literal

from edgelm_converters.spec import TransformerSpec

__all__ = ["Kind", "kind_of"]

Kind = Literal["classes", "binary", "vector"]


def kind_of(spec: TransformerSpec) -> Kind:
    """Return what an answer is: scores of classes of which one holds, of classes that hold each on its own, or a vector."""
    if spec.head.tokens is not None:
        return "classes"
    if spec.head.output == "sigmoid":
        return "binary"
    if spec.head.output in ("logits", "probabilities"):
        return "binary" if spec.head.layers and spec.head.layers[-1].linear.kernel.shape[1] == 1 else "classes"
    return "vector"
