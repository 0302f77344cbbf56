"""Static ONNX files: an encoder of standard operators between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgelm.bundle.manifest import Port, Signature
from edgelm_converters.emit.onnx import signature_of
from edgelm_converters.emit.onnx_file import operator_histogram
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.quantize import check_finite
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.static.calibrate import Progress, calibrate, step_table
from edgelm_converters.static.encoder import prepared
from edgelm_converters.static.form import StaticForm, StaticResult, static_form, with_answer
from edgelm_converters.static.onnx_encoder import build_static_encoder
from edgelm_converters.static.ranges import Ranges

__all__ = ["emit_static_onnx"]

_UNBOUNDED = 512  # tokens that hidden ones are reckoned with where nothing bounds an input


def emit_static_onnx(
    spec: TransformerSpec,
    path: Path,
    *,
    recipe: str,
    samples: Sequence[Mapping[str, NDArray[Any]]],
    ranges: Ranges,
    keep_float: Collection[str] = (),
    integer_io: bool = False,
    length: int | None = None,
    progress: Progress = lambda step, done, total: None,
) -> StaticResult:
    """Write an ONNX file in integers, in QDQ form; the batch and the sequence axis are free unless a length is given.

    Every operator whose inputs come out of a DequantizeLinear and whose result goes into a QuantizeLinear is one that a runtime
    may compute in integers. What it does so with is its own affair: the result's notes tell it of ONNX Runtime's CPU provider.

    Args:
        spec: An encoder.
        path: The file to write. Weights of more than 1 GiB go to ``NAME.onnx.data`` beside it.
        recipe: ``static_wi8_ai8`` or ``static_wi8_ai16``; the second needs ONNX Runtime or a provider of it.
        samples: Calibration inputs by name, int32 ``(1, n)`` without padding.
        ranges: How ranges are chosen (`edgelm_converters.static.ranges.choose_range`).
        keep_float: Names of linear layers (`Linear.name`) that stay float: float16 storage, float32 arithmetic. Those whose
            `least_bits` are 16 stay too.
        integer_io: The form for accelerators: norms, residuals and embeddings in integers too, and the answer, whose steps are
            the result's `answer`.
        length: The only length that the file takes, at batch 1, as an accelerator compiles it; None leaves both axes free.
        progress: Called with the step's description, and how much of it is done.

    Returns:
        What was written; `operators` counts the conversions (QuantizeLinear, DequantizeLinear) too.

    Raises:
        RecipeError: The recipe is none of the two, or `keep_float` names what is no linear layer.
        ConversionError: The model is no encoder that integers have here.
        InputError: The samples do not fit the model, or there is none.
        ModelError: A weight is NaN or infinite.
    """
    form = static_form(spec, recipe, keep_float, integer=integer_io)
    check_finite(spec)
    ready = prepared(spec)
    found = calibrate(ready, samples, norms=False, progress=progress)
    hides = spec.mask != "none" or any(layer.attention.causal for layer in spec.encoder.layers)
    longest = length or spec.fixed_length or spec.max_length or _UNBOUNDED
    steps = step_table(found, ranges, form.bits, hides=hides, longest=longest)
    graph = Graph()
    floats, answer = build_static_encoder(graph, ready, steps, form)
    signature = with_answer(
        signature_of(spec) if length is None else _of_one_length(signature_of(spec), length), answer
    )
    graph.write(path, spec.name, signature.inputs, signature.outputs)
    return StaticResult(
        signatures=(signature,),
        operators=operator_histogram(path),
        float_operators=tuple(floats),
        samples=found.samples,
        tokens=found.tokens,
        ranges=ranges,
        answer=answer,
        notes=_notes(spec, form),
    )


def _of_one_length(signature: Signature, length: int) -> Signature:
    """Return a signature with no free axis: batch 1, and so many tokens."""

    def fixed(port: Port) -> Port:
        _, *others = port.shape
        return replace(port, shape=(1, *(length if extent is None else extent for extent in others)))

    inputs, outputs = (tuple(map(fixed, ports)) for ports in (signature.inputs, signature.outputs))
    return replace(signature, sequence_length=length, inputs=inputs, outputs=outputs)


def _notes(spec: TransformerSpec, form: StaticForm) -> tuple[str, ...]:
    if form.bits == 16:
        return (
            "ONNX Runtime's CPU provider has no products of 16 bits: it computes them in float32 where the session option "
            "session.qdq_matmulnbits_accuracy_level is 1, else with activations of 8 bits",
        )
    notes = []
    if any(layer.feed_forward.activation in ("gelu", "gelu_tanh") for layer in spec.encoder.layers):
        notes.append("ONNX Runtime's CPU provider computes Gelu in float32 between two conversions")
    if form.integer:
        notes.append("ONNX Runtime's CPU provider computes LayerNormalization in float32 between two conversions")
    return tuple(notes)
