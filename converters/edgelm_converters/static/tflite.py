"""Static TFLite files: an encoder whose weights and activations are integers, in ranges found on calibration samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgelm_converters.emit.quantize import check_finite
from edgelm_converters.emit.tflite import check_lengths, operator_histogram, signature_of
from edgelm_converters.emit.tflite_file import Model, write_model
from edgelm_converters.emit.tflite_graph import Graph, Weights
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.static.calibrate import Progress, calibrate, step_table
from edgelm_converters.static.encoder import prepared
from edgelm_converters.static.form import FloatOperator, StaticForm, StaticResult, static_form, with_answer
from edgelm_converters.static.ranges import Ranges, Steps
from edgelm_converters.static.tflite_encoder import File, build_static_encoder

__all__ = ["emit_static_tflite"]


def emit_static_tflite(
    spec: TransformerSpec,
    path: Path,
    *,
    recipe: str,
    lengths: tuple[int, ...],
    samples: Sequence[Mapping[str, NDArray[Any]]],
    ranges: Ranges,
    keep_float: Collection[str] = (),
    integer_io: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> StaticResult:
    """Write a TFLite file in integers, with one signature for each length, called ``serve_16`` and so on; batch 1.

    All lengths share the weights and the ranges.

    Args:
        spec: An encoder.
        path: The file to write; one that exists is replaced in place.
        recipe: ``static_wi8_ai8`` or ``static_wi8_ai16``.
        lengths: Sequence lengths.
        samples: Calibration inputs by name, int32 ``(1, n)`` without padding.
        ranges: How ranges are chosen (`edgelm_converters.static.ranges.choose_range`).
        keep_float: Names of linear layers (`Linear.name`) that stay float: float16 storage, float32 arithmetic. Those whose
            `least_bits` are 16 stay too.
        integer_io: The form for accelerators: norms, residuals and embeddings in integers too, ids int32 and the answer in
            integers, whose steps are the result's `answer`. A CPU is more exact, and no slower, without it.
        progress: Called with the step's description, and how much of it is done.

    Returns:
        What was written.

    Raises:
        RecipeError: The recipe is none of the two, or `keep_float` names what is no linear layer.
        ConversionError: The model is no encoder that integers have here, or no length is given, or one is more than the model
            takes.
        InputError: The samples do not fit the model, or there is none.
        ModelError: A weight is NaN or infinite.
    """
    form = static_form(spec, recipe, keep_float, integer=integer_io)
    lengths = tuple(sorted(set(lengths)))
    check_lengths(spec, lengths)
    check_finite(spec)
    ready = prepared(spec)
    found = calibrate(ready, samples, norms=integer_io, progress=progress)
    hides = spec.mask != "none" or any(layer.attention.causal for layer in spec.encoder.layers)
    steps = step_table(found, ranges, form.bits, hides=hides, longest=lengths[-1])
    model = Model(description=f"{spec.name}, {recipe}, written by edgelm")
    file = File(Weights(model), steps, form, lengths)
    floats: list[FloatOperator] = []
    for length in lengths:
        floats = build_static_encoder(file, Graph(file.weights, f"serve_{length}"), ready, length)
    write_model(model, path)
    answer = _answer(model, file, form)
    return StaticResult(
        signatures=tuple(with_answer(signature_of(spec, length), answer) for length in lengths),
        operators=operator_histogram(path),
        float_operators=tuple(floats),
        samples=found.samples,
        tokens=found.tokens,
        ranges=ranges,
        answer=answer,
        notes=_notes(form),
    )


def _answer(model: Model, file: File, form: StaticForm) -> Steps | None:
    if not form.integer:
        return None
    graph = model.subgraphs[0]
    record = graph.tensors[graph.outputs[0]].quantization
    return next(steps for steps, known in file.quantizations.known.items() if known is record)


def _notes(form: StaticForm) -> tuple[str, ...]:
    if form.bits == 8:
        return ()
    return (
        "activations of 16 bits run in reference kernels on a CPU, several times slower than float32: the file is for NPUs",
        "TFLite's softmax of 16 bits weighs a hidden token with exp(-10), not 0",
    )
