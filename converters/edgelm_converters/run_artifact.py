"""One file of a model whose one run is its answer: written, run in its runtime, held against Keras and against the gate."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgelm_runtimes.program import Program, ProgramOptions
from edgelm_runtimes.registry import open_program

from edgelm.bundle import Accuracy, Artifact, GateRecord, Parity, RuntimeRecord, Signature
from edgelm.bundle.manifest import Format, Role
from edgelm.errors import ConversionError, ExecutionError, RecipeError, RuntimeUnavailableError
from edgelm_converters import trace
from edgelm_converters.chain import DEFAULT_RANGES, Chain
from edgelm_converters.gate import Gate, Trial, climb, rank
from edgelm_converters.lengths import Lengths
from edgelm_converters.parity import Expected, compare, deviation, enforce, judged_by_task
from edgelm_converters.reference import Reference
from edgelm_converters.request import Progress
from edgelm_converters.samples import SampleSet
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.written import Written

__all__ = ["TARGETS", "Emitter", "Question", "make_artifact"]

TARGETS: dict[str, str] = {"tflite": "litert", "onnx": "onnx"}  # format -> the runtime that verifies it

_RANKING_SAMPLES = 48  # a part's cost is a mean over them: it is compared with the others', on the same samples
_ENOUGH_LABELS = 200  # a fallen accuracy shows: 2 points are then 2 standard errors at 98 % of equal labels
_TFLITE_RUNTIME_REFUSAL = (
    "tflite-runtime 2.14 computes int8 weights with a scale per channel wrongly, or lacks the operator: "
    "use ai-edge-litert, or convert with --recipe fp32, fp16 or weight_only_wi8_afp32"
)


@dataclass(frozen=True)
class Emitter:
    """Writes a model in a format: the recognised way where there is a spec, else the traced way."""

    source: Source
    reference: Reference
    lengths: Lengths
    role: Role
    chain: Chain
    calibration: SampleSet | None

    def emit(self, target: Format, spec: TransformerSpec | None, path: Path, progress: Progress) -> Written:
        """Write the file.

        Raises:
            RecipeError: The recipe is not for this model, or lacks calibration data.
        """
        from edgelm_converters.emit import onnx, tflite
        from edgelm_converters.emit.notes import encoder_notes

        recipe = self.chain.recipe
        if recipe.static:
            return self._emit_static(target, spec, path, progress)
        notes: tuple[str, ...] = ()
        if target == "tflite":
            if spec is not None:
                signatures = tflite.emit_tflite(spec, path, recipe=recipe.name, lengths=self.lengths.buckets)
                notes = encoder_notes(spec, recipe.name, target)
            else:
                buckets = self.lengths.buckets or (None,)
                signatures = trace.trace_tflite(
                    self.source, self.reference, path, recipe=recipe.name, lengths=buckets, role=self.role
                )
            return Written(path, path, signatures, tflite.operator_histogram(path), notes)
        if spec is not None:
            signatures = onnx.emit_onnx(spec, path, recipe=recipe.name)
            notes = encoder_notes(spec, recipe.name, target)
        else:
            length = self.lengths.maximum if self.lengths.padding == "full" else None
            signatures = trace.trace_onnx(
                self.source, self.reference, path, recipe=recipe.name, length=length, role=self.role
            )
        return Written(path, path, signatures, onnx.operator_histogram(path), notes)

    def _emit_static(self, target: Format, spec: TransformerSpec | None, path: Path, progress: Progress) -> Written:
        from edgelm_converters.static.onnx import emit_static_onnx
        from edgelm_converters.static.tflite import emit_static_tflite

        recipe = self.chain.recipe
        if spec is None:
            raise RecipeError(
                f"{recipe.name} is written for recognised models, whose masks and norms are known, and this one was traced: "
                "take --recipe dynamic_wi8_afp32, fp16 or fp32."
            )
        if self.calibration is None:
            raise RecipeError(
                f"{recipe.name} needs real inputs to calibrate its ranges on: give them with --calibration."
            )
        samples = [sample.inputs for sample in self.calibration.samples]
        ranges, integer_io = self.chain.ranges or DEFAULT_RANGES, self.chain.integer_io
        if target == "tflite":
            made = emit_static_tflite(
                spec, path, recipe=recipe.name, lengths=self.lengths.buckets, samples=samples, ranges=ranges,
                integer_io=integer_io, progress=progress,
            )  # fmt: skip
        else:
            made = emit_static_onnx(
                spec, path, recipe=recipe.name, samples=samples, ranges=ranges, integer_io=integer_io,
                length=self.lengths.maximum if self.lengths.fixed else None, progress=progress,
            )  # fmt: skip
        floats = _float_notes((entry.reason, entry.count, entry.operator) for entry in made.float_operators)
        return Written(path, path, made.signatures, dict(made.operators), (*floats, *made.notes))


@dataclass(frozen=True)
class Question:
    """What an artifact is asked, and what it has to answer.

    Attributes:
        sets: Inputs.
        expected: Of each set, what Keras answers: of the model after its compression.
        pad_id: The id that fills up.
        accuracy: Of the Keras model as it was given, on the last set with labels; None where none has any.
    """

    sets: Sequence[SampleSet]
    expected: Sequence[Expected]
    pad_id: int
    accuracy: float | None


@dataclass(frozen=True)
class _Measured:
    written: Written
    results: list[tuple[Parity, Accuracy | None]]
    version: str

    @property
    def accuracy(self) -> Accuracy | None:
        return next((accuracy for _, accuracy in reversed(self.results) if accuracy is not None), None)


def make_artifact(
    target: Format, emitter: Emitter, spec: TransformerSpec | None, question: Question, folder: Path, progress: Progress
) -> Artifact:
    """Write one format, run it in its runtime, and hold it against Keras and the gate.

    Raises:
        ParityError: It leaves the recipe's bounds, or nothing passes the gate.
        ConversionError: It does not open or run in its runtime.
        RecipeError: The recipe or the gate is not for this model.
    """
    gate, recipe = emitter.chain.gate, emitter.chain.recipe
    path = folder / f"model.{target}"
    found: list[_Measured] = []

    def attempt(tried: TransformerSpec | None) -> Trial:
        found[:] = [_measure(target, emitter, tried, question, path, progress)]
        return Trial(_value(gate, found[0], emitter.chain), found[0].written.size_bytes)

    record: GateRecord | None = None
    if gate is None:
        found.append(_measure(target, emitter, spec, question, path, progress))
        labelled = found[0].accuracy
        holds = labelled is not None and labelled.samples >= _ENOUGH_LABELS
        for parity, accuracy in found[0].results:
            enforce(parity, accuracy, recipe, TARGETS[target], task_holds=holds)
    else:
        judged = question.sets[-1]
        record = climb(
            spec, recipe, gate,
            keras=question.accuracy if gate.metric == "accuracy" and question.accuracy is not None else 0.0,
            data=judged.source, samples=len(judged.samples), attempt=attempt,
            ranking=lambda: _ranking(target, emitter, spec, question, progress),
        )  # fmt: skip
    return _artifact(target, emitter, found[0], question, record)


def _value(gate: Gate | None, measured: _Measured, chain: Chain) -> float:
    """Return an artifact's metric.

    Raises:
        RecipeError: The metric is not for this model or these data.
    """
    if gate is None or gate.metric == "parity":
        parity = measured.results[-1][0]
        return parity.max_abs_error / max(parity.reference_range, 1e-6)
    if gate.metric != "accuracy":
        raise RecipeError(f"--metric {gate.metric} is of models that write text: take accuracy or parity for this one.")
    if measured.accuracy is None:
        raise RecipeError("--metric accuracy needs labelled data: give them with --validation.")
    return measured.accuracy.artifact


def _measure(
    target: Format,
    emitter: Emitter,
    spec: TransformerSpec | None,
    question: Question,
    path: Path,
    progress: Progress,
) -> _Measured:
    written, program = _opened(target, emitter, spec, path, progress)
    try:
        results = [
            compare(
                program, written.signatures, samples, answers, recipe=emitter.chain.recipe, pad_id=question.pad_id,
                tick=lambda done, total: progress(f"Checking {target} against Keras", done, total),
            )
            for samples, answers in zip(question.sets, question.expected, strict=True)
        ]  # fmt: skip
        return _Measured(written, results, program.facts.runtime_version)
    except ExecutionError as error:
        raise ConversionError(f"The {target} file opens in {TARGETS[target]}, but does not run: {error}") from error
    finally:
        program.close()


def _opened(
    target: Format, emitter: Emitter, spec: TransformerSpec | None, path: Path, progress: Progress
) -> tuple[Written, Program]:
    progress(f"Writing {target}", 0, 1)
    written = emitter.emit(target, spec, path, progress)
    signatures = tuple(_with_role(signature, emitter.role) for signature in written.signatures)
    written = dataclasses.replace(written, signatures=signatures)
    progress(f"Writing {target}", 1, 1)
    try:
        return written, open_program(TARGETS[target], path, written.signatures, ProgramOptions())
    except RuntimeUnavailableError as error:
        raise ConversionError(
            f"The {target} file was written, but {TARGETS[target]} does not open it: {error}"
        ) from error


def _with_role(signature: Signature, role: Role) -> Signature:
    first, *others = signature.outputs
    return dataclasses.replace(signature, outputs=(dataclasses.replace(first, role=role), *others))


def _float_notes(operators: Iterable[tuple[str, int, str]]) -> tuple[str, ...]:
    """Return a line for each reason to compute in float32, with the operators that do."""
    lines: dict[str, list[str]] = {}
    for reason, count, name in operators:
        lines.setdefault(reason, []).append(f"{count} {name}")
    return tuple(f"In float32: {', '.join(names)}; {reason}." for reason, names in lines.items())


def _ranking(
    target: Format, emitter: Emitter, spec: TransformerSpec | None, question: Question, progress: Progress
) -> dict[str, float]:
    """Return the error of the answers, root mean square as a share of their range, where one part alone is compressed."""
    if spec is None:
        return {}
    samples, expected = question.sets[-1], question.expected[-1]
    rows = np.unique(np.linspace(0, len(samples.samples) - 1, _RANKING_SAMPLES).astype(int))
    few = dataclasses.replace(samples, samples=tuple(samples.samples[row] for row in rows))
    answers = Expected(tuple(expected.outputs[row] for row in rows))
    with tempfile.TemporaryDirectory(prefix="edgelm-") as folder:

        def error(tried: TransformerSpec) -> float:
            # A path of its own: what a program has open is not replaced.
            path = Path(tempfile.mkdtemp(dir=folder)) / f"part.{target}"
            written, program = _opened(target, emitter, tried, path, lambda step, done, total: None)
            try:
                return deviation(program, written.signatures, few, answers, pad_id=question.pad_id)
            finally:
                program.close()

        return rank(spec, error, tick=lambda done, total: progress(f"Ranking the parts in {target}", done, total))


def _artifact(
    target: Format, emitter: Emitter, measured: _Measured, question: Question, gate: GateRecord | None
) -> Artifact:
    written, recipe = measured.written, emitter.chain.recipe
    runtimes = [RuntimeRecord(TARGETS[target], "verified", measured.version)]
    if target == "tflite":
        refused = recipe.activations == "dynamic"
        reason = _TFLITE_RUNTIME_REFUSAL if refused else "not run here"
        runtimes.append(RuntimeRecord("tflite", "refused" if refused else "untested", None, reason))
    accuracy = measured.accuracy
    if accuracy is not None and question.accuracy is not None:
        accuracy = dataclasses.replace(accuracy, keras=question.accuracy)
    return Artifact(
        format=target,
        file=written.path.name,
        data_files=written.data_files,
        size_bytes=written.size_bytes,
        signatures=written.signatures,
        runtimes=tuple(runtimes),
        parity=judged_by_task(measured.results[0][0]),
        accuracy=accuracy,
        operators=written.operators,
        notes=written.notes,
        gate=gate,
    )
