"""What makes a plain model a language model: one layer that scores every token of the vocabulary, behind causal layers."""

from __future__ import annotations

import numpy as np

from edgelm_converters.families.plain_walk import Walk, activation, reached_from
from edgelm_converters.keras_graph import Constant, Graph, Node, Tensor
from edgelm_converters.keras_pieces import Pieces
from edgelm_converters.spec import Float32, TokenHead

__all__ = ["is_reversed", "main_output", "token_head"]


def main_output(graph: Graph) -> str | None:
    """Return the output that every other one lies on the way to; None where there is no such output.

    A language model may give its last hidden states beside the scores that it makes of them, as the Keras example
    "Text generation with a miniature GPT" does.
    """
    for name, tensor in graph.outputs.items():
        reached = reached_from(graph, tensor)
        if all(other.node in reached for other in graph.outputs.values()):
            return name
    return None


def token_head(walk: Walk, pieces: Pieces, tensor: Tensor, table: Float32) -> TokenHead | None:
    """Return the layer that scores tokens, where it and nothing else comes between `tensor` and the output.

    A softmax behind it is left out: whoever generates takes a softmax of the scores itself, at a temperature, and the
    greatest score is the greatest probability.

    Args:
        walk: The graph.
        pieces: Reads layers.
        tensor: What the last layer, or its norm, gives.
        table: The token embedding, ``(V, D)``.
    """
    node = walk.single_user(tensor)
    tied = node is not None and _is_product_with(table, node)
    if node is None or not (tied or _is_dense(node, len(table)) or is_reversed(node)):
        return None
    result = walk.made_by(node)
    user = walk.single_user(result)
    if activation(user) == "softmax" and user is not None:
        result = walk.made_by(user)
    if not walk.is_output(result):
        return None
    return TokenHead(node.path or "token_scores", table) if tied else pieces.token_head(node)


def is_reversed(node: Node) -> bool:
    """Whether a node is a ``ReversibleEmbedding`` that scores, and looks nothing up."""
    return node.kind == "ReversibleEmbedding" and bool(node.arguments["reverse"])


def _is_product_with(table: Float32, node: Node) -> bool:
    """Whether a node is ``matmul(x, transpose(table))``: a tied head, written by hand. The table is a constant there."""
    if node.kind != "Matmul" or not isinstance(node.arguments["x2"], Constant):
        return False
    factor = node.arguments["x2"].value
    # In mixed precision, the model rounds its table before it multiplies.
    return factor.shape == table.shape[::-1] and bool(np.array_equal(factor.T, table.astype(factor.dtype)))


def _is_dense(node: Node, vocabulary: int) -> bool:
    return node.kind == "Dense" and int(node.operation.kernel.shape[1]) == vocabulary
