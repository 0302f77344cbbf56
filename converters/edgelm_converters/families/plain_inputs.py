"""How a plain model turns its inputs into vectors: the embeddings of tokens, positions and segments, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.families.plain_language import is_reversed
from edgelm_converters.families.plain_walk import Walk, operands, refuse, scalar
from edgelm_converters.keras_graph import Argument, Constant, Node, Tensor
from edgelm_converters.keras_masks import ids_source
from edgelm_converters.keras_pieces import NORMS, Pieces
from edgelm_converters.spec import Embeddings, Float32, Linear, Norm

__all__ = ["find_lookups", "read_embeddings", "token_lookup"]

_EMBEDDINGS = ("Embedding", "ReversibleEmbedding")


def find_lookups(walk: Walk) -> dict[str, Node]:
    """Return the embeddings of inputs, by the input's name.

    Raises:
        NotRecognised: There are none, an input has two, or something else is looked up.
    """
    lookups: dict[str, Node] = {}
    for node in walk.nodes:
        if node.kind not in _EMBEDDINGS or is_reversed(node):
            continue
        source = ids_source(node.arguments["inputs"])
        if source is None:
            raise NotRecognised(f"{node.describe()} looks up something that is no input of the model as it is")
        if source in lookups:
            raise NotRecognised(f"{node.describe()} and {lookups[source].describe()} both look up the input '{source}'")
        lookups[source] = node
    if not lookups:
        first = walk.inputs[0]
        refuse(first, "an Embedding of the token ids", walk.users(first))
    return lookups


def token_lookup(lookups: Mapping[str, Node], compared: Iterable[str]) -> str:
    """Return which input holds the tokens: the one that the mask compares with 0, or else the one with more rows.

    In the sum they are equals, so any answer gives the right numbers; it only says which input is called what.

    Args:
        lookups: As `find_lookups` gives them.
        compared: Names of the inputs that masks compare with 0.

    Raises:
        NotRecognised: It is not known.
    """
    known = set(compared) & set(lookups)
    if len(lookups) == 1 or len(known) == 1:
        return next(iter(known or lookups))
    rows = sorted((int(node.operation.embeddings.shape[0]), source) for source, node in lookups.items())
    if len(rows) > 2 or rows[0][0] == rows[1][0]:
        raise NotRecognised(f"the model looks up {len(rows)} inputs, and which one holds the tokens is not known")
    return rows[-1][1]


def read_embeddings(walk: Walk, pieces: Pieces, source: str, lookups: Mapping[str, Node]) -> tuple[Embeddings, Tensor]:
    """Return the embeddings, and the tensor that goes into the first layer.

    Args:
        walk: The graph.
        pieces: Reads layers.
        source: The input that holds the tokens.
        lookups: As `find_lookups` gives them.

    Raises:
        NotRecognised: Something else is computed before the first layer.
    """
    token = lookups[source]
    tensor, scale = _scaled(walk, walk.made_by(token))
    total = tensor
    while user := walk.user_of(total, ("Add",)):
        total = walk.made_by(user)
    segment: Node | None = None
    position: Float32 | None = None
    seen_token = False
    for term in _terms(walk, total, total.shape):
        if term is tensor and not seen_token:
            seen_token = True
        elif isinstance(term, Tensor) and term.node in lookups.values() and term.node is not token and segment is None:
            segment = term.node
        elif not isinstance(term, Tensor):
            rows = _rows(term, total)
            position = rows if position is None else position + rows
        else:
            raise NotRecognised(
                f"the embeddings are the sum of tokens, positions and segments, and also of {term.node.describe()}"
            )
    norm, projection, total = _after_embeddings(walk, pieces, total)
    segments = pieces.table(segment) if segment is not None else None
    return Embeddings(pieces.table(token), position, segments, norm, projection, scale), total


def _scaled(walk: Walk, tensor: Tensor) -> tuple[Tensor, float]:
    user = walk.user_of(tensor, ("Multiply", "Divide", "TrueDivide"))
    if user is None:
        return tensor, 1.0
    left, right = operands(user)
    if user.kind == "Multiply" and walk.root(left) is not tensor:
        left, right = right, left
    factor = scalar(right)
    if factor is None or walk.root(left) is not tensor:
        refuse(tensor, "a factor that is one constant number", (user,))
    return walk.made_by(user), factor if user.kind == "Multiply" else 1.0 / factor


def _terms(walk: Walk, tensor: Tensor, shape: tuple[int | None, ...]) -> list[Argument]:
    """Return what is summed up, through any number of Adds."""
    if tensor.node.kind != "Add":
        return [tensor]
    terms: list[Argument] = []
    for operand in map(walk.root, operands(tensor.node)):
        if isinstance(operand, Tensor) and operand.shape != shape:
            raise NotRecognised(f"{tensor.node.describe()} adds tensors of the shapes {operand.shape} and {shape}")
        terms += _terms(walk, operand, shape) if isinstance(operand, Tensor) else [operand]
    return terms


def _after_embeddings(walk: Walk, pieces: Pieces, tensor: Tensor) -> tuple[Norm | None, Linear | None, Tensor]:
    norm, projection = None, None
    if user := walk.user_of(tensor, NORMS):
        norm, tensor = pieces.norm(user), walk.made_by(user)
    if user := walk.user_of(tensor, ("Dense",)):
        projection, tensor = pieces.linear(user), walk.made_by(user)
    return norm, projection, tensor


def _rows(term: Argument, total: Tensor) -> Float32:
    """Return a constant term of the embeddings as rows ``(S, E)``, the same for every text of a batch."""
    value = term.value if isinstance(term, Constant) else term
    rows = np.broadcast_to(np.asarray(value, dtype=np.float32), tuple(extent or 1 for extent in total.shape))
    if not (rows == rows[:1]).all():
        raise NotRecognised("a constant that is added to the embeddings differs between the texts of a batch")
    return np.ascontiguousarray(rows[0])
