"""What makes a plain model a language model: one layer that scores every token of the vocabulary, behind causal layers."""

from __future__ import annotations

from edgelm_converters.families.plain_walk import Walk, activation, reached_from
from edgelm_converters.keras_graph import Graph, Node, Tensor
from edgelm_converters.keras_pieces import Pieces
from edgelm_converters.spec import TokenHead

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


def token_head(walk: Walk, pieces: Pieces, tensor: Tensor, vocabulary: int) -> TokenHead | None:
    """Return the layer that scores tokens, where it and nothing else comes between `tensor` and the output.

    A softmax behind it is left out: whoever generates takes a softmax of the scores itself, at a temperature, and the
    greatest score is the greatest probability.

    Args:
        walk: The graph.
        pieces: Reads layers.
        tensor: What the last layer, or its norm, gives.
        vocabulary: V, number of rows of the token embedding.
    """
    node = walk.single_user(tensor)
    if node is None or not (_is_dense(node, vocabulary) or is_reversed(node)):
        return None
    result = walk.made_by(node)
    user = walk.single_user(result)
    if activation(user) == "softmax" and user is not None:
        result = walk.made_by(user)
    return pieces.token_head(node) if walk.is_output(result) else None


def is_reversed(node: Node) -> bool:
    """Whether a node is a ``ReversibleEmbedding`` that scores, and looks nothing up."""
    return node.kind == "ReversibleEmbedding" and bool(node.arguments["reverse"])


def _is_dense(node: Node, vocabulary: int) -> bool:
    return node.kind == "Dense" and int(node.operation.kernel.shape[1]) == vocabulary
