"""TFLite files, written directly from a `TransformerSpec`: no TensorFlow takes part.

A file has one signature for each sequence length; all of them share one copy of the weights.
"""

from __future__ import annotations

import mmap
from collections import Counter
from pathlib import Path
from typing import Any

from edgelm.bundle.manifest import Port, Role, Signature
from edgelm.errors import ConversionError
from edgelm_converters.emit.quantize import check_finite, weight_recipe
from edgelm_converters.emit.tflite_encoder import build_encoder
from edgelm_converters.emit.tflite_file import Model, write_model
from edgelm_converters.emit.tflite_graph import Graph, Weights
from edgelm_converters.emit.tflite_weights import Store
from edgelm_converters.spec import TransformerSpec

__all__ = ["check_lengths", "emit_tflite", "operator_histogram", "signature_of"]


def emit_tflite(spec: TransformerSpec, path: Path, *, recipe: str, lengths: tuple[int, ...]) -> tuple[Signature, ...]:
    """Write a TFLite file with one signature for each sequence length, called ``serve_16`` and so on; batch 1.

    Takes little more memory than the weights in the recipe's form.

    Args:
        spec: The model.
        path: The file to write. One that exists is replaced in place: give a path that no running program has opened.
        recipe: Any without calibrated ranges (`edgelm_converters.recipes`). float16 weights are computed with in float32,
            and so are those of ``weight_only_wi8_afp32``; of 4 bits are the kernels whose inputs fill the blocks, and
            embeddings are int8 then (`edgelm_converters.emit.notes`).
        lengths: Sequence lengths.

    Returns:
        The signatures, by ascending length. Inputs are int32 ``(1, n)``.

    Raises:
        RecipeError: There is no such recipe, or float16 cannot hold the weights.
        ConversionError: No length is given, one is more than the model takes, or the file would be too large.
        ModelError: A weight is NaN or infinite.
    """
    chosen = weight_recipe(recipe)
    lengths = tuple(sorted(set(lengths)))
    check_lengths(spec, lengths)
    check_finite(spec)
    model = Model(description=f"{spec.name}, {recipe}, written by edgelm")
    store = Store(Weights(model), chosen)
    for length in lengths:
        build_encoder(Graph(store.weights, f"serve_{length}"), store, spec, length, lengths)
    write_model(model, path)
    return tuple(signature_of(spec, length) for length in lengths)


def operator_histogram(path: Path) -> dict[str, int]:
    """Return how often each operator comes in one pass through the model: its signature with the most operators.

    Operators outside of TFLite's own are called ``CUSTOM:NAME``. Works on any ``.tflite`` file.

    Raises:
        ConversionError: It is not a TFLite file.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    with path.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise ConversionError(f"{path.name} is not a TFLite file: it lacks the mark TFL3.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            model: Any = schema.Model.GetRootAs(content, 0)
            codes = [_operator_name(model.OperatorCodes(i), names) for i in range(model.OperatorCodesLength())]
            graphs = {model.SignatureDefs(i).SubgraphIndex() for i in range(model.SignatureDefsLength())} or {0}
            counts = [_count(model.Subgraphs(index), codes) for index in sorted(graphs)]
    return dict(sorted(max(counts, key=lambda count: sum(count.values())).items()))


def _operator_name(code: Any, names: dict[int, str]) -> str:
    # Files from before 2020 have the number in the old field only.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = names.get(number, f"BUILTIN_{number}")
    return f"CUSTOM:{code.CustomCode().decode()}" if name == "CUSTOM" else name


def _count(graph: Any, codes: list[str]) -> Counter[str]:
    names = [codes[graph.Operators(index).OpcodeIndex()] for index in range(graph.OperatorsLength())]
    return Counter(names)


def check_lengths(spec: TransformerSpec, lengths: tuple[int, ...]) -> None:
    """Check the sequence lengths of a file, ascending.

    Raises:
        ConversionError: There is none, or one is more than the model takes.
    """
    if not lengths or lengths[0] < 1:
        raise ConversionError(f"A TFLite file needs sequence lengths of at least 1, and was given {lengths}.")
    positions = None if spec.embeddings.position is None else len(spec.embeddings.position)
    known = [limit for limit in (spec.max_length, positions) if limit is not None]
    if known and lengths[-1] > min(known):
        raise ConversionError(
            f"The model '{spec.name}' takes at most {min(known)} tokens, not {lengths[-1]}: give a smaller --sequence-length."
        )


def signature_of(spec: TransformerSpec, length: int) -> Signature:
    """Return how an encoder is called with so many tokens."""
    roles: list[tuple[str | None, Role]] = [
        (spec.token_input, "token_ids"), (spec.mask_input, "padding_mask"), (spec.segment_input, "segment_ids")
    ]  # fmt: skip
    inputs = tuple(Port(name, "int32", (1, length), role) for name, role in roles if name is not None)
    width = spec.head.layers[-1].linear.kernel.shape[1] if spec.head.layers else spec.width
    shape = (1, length, width) if spec.head.pooling == "none" else (1, width)
    output = Port(spec.output_name, "float32", shape, spec.head.output)
    return Signature(f"serve_{length}", length, inputs, (output,))
