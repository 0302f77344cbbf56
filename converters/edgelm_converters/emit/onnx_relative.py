"""T5's bias of the distance as ONNX nodes."""

from __future__ import annotations

import numpy as np

from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.relative import relative_buckets
from edgelm_converters.spec import RelativeBias

__all__ = ["bias_by_distance"]


def bias_by_distance(graph: Graph, bias: RelativeBias, queries: str, keys: str) -> str:
    """Return what is added to the scores, float32 ``(H, n, m)``, for positions int64 ``(n,)`` and ``(m,)``.

    The file has a row of ``2 * max_distance + 1`` values a head, one for each distance: all that lie further away share the
    last bucket of their side, so that the length of a sequence is free.
    """
    far = bias.max_distance
    by_distance = bias.table[relative_buckets(np.arange(-far, far + 1), bias)].T
    table = graph.tensor(
        np.ascontiguousarray(by_distance), "relative_bias", bias.table, form=f"by distance {far} {bias.bidirectional}"
    )
    away = graph.node(
        "Sub",
        graph.node("Unsqueeze", keys, graph.constant([0])),
        graph.node("Unsqueeze", queries, graph.constant([1])),
    )
    place = graph.node("Add", away, graph.constant(np.array(far)))
    place = graph.node("Clip", place, graph.constant(np.array(0)), graph.constant(np.array(2 * far)))
    return graph.node("Gather", table, place, axis=1)
