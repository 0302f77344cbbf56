"""A TransformerSpec as an ONNX file for ONNX Runtime's CPU provider.

The batch and the sequence axis are free, inputs are int32, the output is float32. Dimensions: ``B`` inputs, ``n`` tokens,
``D`` width, ``C`` classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgelm.bundle.manifest import Port, Signature
from edgelm_converters.emit.onnx_blocks import Flow, activate, embed, encode_layer, normalise, start
from edgelm_converters.emit.onnx_file import operator_histogram
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_weights import FLOAT
from edgelm_converters.emit.quantize import check_finite, weight_recipe
from edgelm_converters.spec import TransformerSpec

__all__ = ["emit_onnx", "operator_histogram", "signature_of"]

_LOWEST = float(np.finfo(np.float32).min)


def emit_onnx(spec: TransformerSpec, path: Path, *, recipe: str) -> tuple[Signature, ...]:
    """Write a spec as an ONNX file that onnxruntime >= 1.22 opens.

    Args:
        spec: The model. Where it has a `fixed_length`, that is the length of the sequence axis.
        path: The file to write. Weights of more than 1 GiB go to ``NAME.onnx.data`` beside it.
        recipe: Any without calibrated ranges (`edgelm_converters.recipes`); what each becomes says
            `edgelm_converters.emit.onnx_weights.Weights`.

    Returns:
        The one signature, ``"main"``.

    Raises:
        ModelError: A weight holds a NaN or an infinity.
        RecipeError: The recipe is unknown, or a weight is too large for float16.
    """
    chosen = weight_recipe(recipe)
    check_finite(spec)
    graph = Graph()
    flow = start(spec, graph, chosen)
    graph.rename(_answer(flow, spec, _encode(flow, spec)), spec.output_name)
    signature = signature_of(spec)
    graph.write(path, spec.name, signature.inputs, signature.outputs)
    return (signature,)


def _encode(flow: Flow, spec: TransformerSpec) -> str:
    """Return the encoder's output: ``(n*B, D)``, or with "first" pooling the rows ``(B, D)`` of the first tokens."""
    x = embed(flow, spec)
    layers = spec.encoder.layers
    only_first = spec.head.pooling == "first"
    early = only_first and bool(layers) and not layers[-1].attention.causal
    for index, layer in enumerate(layers):
        x = encode_layer(flow, layer, x, first_only=early and index == len(layers) - 1)
    if only_first and not early:
        x = flow.first_rows(x)
    if spec.encoder.final_norm is not None:
        x = normalise(flow.graph, spec.encoder.final_norm, x, "encoder/final_norm")
    return x


def _answer(flow: Flow, spec: TransformerSpec, x: str) -> str:
    """Return the head's output: ``(B, C)``, or ``(B, n, C)`` without pooling."""
    graph, head = flow.graph, spec.head
    if head.pooling in ("mean", "max"):
        x = _pool(flow, spec, x)
    width = spec.width
    for layer in head.layers:
        x = activate(graph, layer.activation, flow.weights.linear(x, layer.linear))
        width = int(layer.linear.kernel.shape[1])
    if head.output == "probabilities":
        x = graph.node("Softmax", x, axis=-1)
    elif head.output == "sigmoid":
        x = graph.node("Sigmoid", x)
    if head.pooling == "none":
        x = graph.node("Transpose", flow.split(x, -1, width), perm=(1, 0, 2))
    return x


def _pool(flow: Flow, spec: TransformerSpec, x: str) -> str:
    """Return the mean or the maximum over the tokens, ``(B, D)``."""
    graph = flow.graph
    real = flow.real if spec.head.pooling_masked else None
    x = flow.split(x, -1, spec.width)  # (n, B, D)
    if spec.head.pooling == "max":
        if real is not None:
            counted = graph.node("Unsqueeze", graph.node("Transpose", real, perm=(1, 0)), graph.constant([2]))
            x = graph.node("Where", counted, x, graph.constant(_LOWEST))
        return graph.node("ReduceMax", x, graph.constant([0]), keepdims=0)
    if real is None:
        return graph.node("ReduceMean", x, graph.constant([0]), keepdims=0)
    # Weights that sum to 1, and one product (B, 1, n) @ (B, n, D), which reads x where it lies.
    ones = graph.node("Cast", real, to=FLOAT)
    share = graph.node("Div", ones, graph.node("ReduceSum", ones, graph.constant([1]), keepdims=1))
    mean = graph.node(
        "FusedMatMul", graph.node("Unsqueeze", share, graph.constant([1])), x, contrib=True, transBatchB=1
    )
    return graph.node("Squeeze", mean, graph.constant([1]))


def signature_of(spec: TransformerSpec) -> Signature:
    """Return how an encoder's file is called."""
    shape = (None, spec.fixed_length)
    inputs = [Port(spec.token_input, "int32", shape, "token_ids")]
    if spec.mask == "input" and spec.mask_input is not None:
        inputs.append(Port(spec.mask_input, "int32", shape, "padding_mask"))
    if spec.segment_input is not None:
        inputs.append(Port(spec.segment_input, "int32", shape, "segment_ids"))
    layers = spec.head.layers
    width = int(layers[-1].linear.kernel.shape[1]) if layers else spec.width
    answer = (None, spec.fixed_length, width) if spec.head.pooling == "none" else (None, width)
    return Signature(
        "main", spec.fixed_length, tuple(inputs), (Port(spec.output_name, "float32", answer, spec.head.output),)
    )
