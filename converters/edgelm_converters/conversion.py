"""One call from a Keras model to a verified bundle."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgelm_runtimes import feed
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_program
from numpy.typing import NDArray

from edgelm.bundle import (
    FORMAT,
    SCHEMA_VERSION,
    Accuracy,
    Artifact,
    BundleWriter,
    GoldenCase,
    Manifest,
    Parity,
    RuntimeRecord,
    Signature,
    write_golden,
)
from edgelm.bundle.manifest import Format, Role, Task
from edgelm.errors import (
    ConversionError,
    ExecutionError,
    InputError,
    RecipeError,
    RuntimeUnavailableError,
    unknown_name,
)
from edgelm_converters import recipes, trace
from edgelm_converters.data import Dataset, read_dataset, read_labels
from edgelm_converters.families import Recognition, recognise
from edgelm_converters.frameworks import require
from edgelm_converters.language_bundle import make_language_model
from edgelm_converters.lengths import Lengths, choose_lengths
from edgelm_converters.parity import Expected, compare, expect
from edgelm_converters.records import model_record, tool_versions
from edgelm_converters.reference import Reference, make_reference
from edgelm_converters.request import Progress, Request
from edgelm_converters.samples import Sample, SampleSet, make_samples
from edgelm_converters.source import Source, load_source
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.tokens import Tokens, find_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TARGETS", "Conversion", "Progress", "convert"]

_RUN_TARGETS: tuple[Format, ...] = ("tflite", "onnx")

TARGETS: dict[str, str] = {"tflite": "litert", "onnx": "onnx"}  # format -> the runtime that verifies it
_PACKAGES: dict[Format, tuple[str, ...]] = {
    "tflite": ("ai_edge_litert", "flatbuffers"),
    "onnx": ("onnx", "onnxruntime"),
    "litertlm": ("ai_edge_litert", "flatbuffers", "litert_lm_builder"),
}
_GOLDEN_CASES = 8
_PARITY_SAMPLES = 512  # enough to see one label in a hundred change; the labelled data are run whole for the accuracy
_TFLITE_RUNTIME_REFUSAL = (
    "tflite-runtime 2.14 computes int8 weights with a scale per channel wrongly, or lacks the operator: "
    "use ai-edge-litert, or convert with --recipe fp32 or fp16"
)


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        path: The bundle.
        manifest: As it was written.
    """

    path: Path
    manifest: Manifest


def convert(
    model: object,
    output: str | Path,
    *,
    to: Sequence[str] | None = None,
    recipe: str = "dynamic_wi8_afp32",
    tokenizer: str | Path | Tokenizer | None = None,
    labels: str | Path | Sequence[str] | None = None,
    calibration: str | Path | None = None,
    validation: str | Path | None = None,
    sequence_length: int | None = None,
    chat_template: str | Path | None = None,
    cache_lengths: Sequence[int] | None = None,
    prefill_lengths: Sequence[int] | None = None,
    custom_objects: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Conversion:
    """Convert a Keras model into a bundle, and check it against Keras before it is written.

    Args:
        model: A `keras.Model`; the path of a `.keras` file, a SavedModel or a KerasHub preset folder; or a handle that KerasHub
            loads (``hf://…``, ``kaggle://…``), which needs a network.
        output: The bundle to write, ``NAME.edgelm``.
        to: Formats: ``tflite``, ``onnx``, and for a language model ``litertlm``. None writes all that fit.
        recipe: ``fp32``, ``fp16``, ``dynamic_wi8_afp32`` (``int8``), and for a language model ``dynamic_wi4b32_afp32``
            (``int4``).
        tokenizer: A ``tokenizer.json``, ``vocab.txt``, SentencePiece ``.model`` or preset folder, or a
            `tokenizers.Tokenizer`. A KerasHub task brings its own.
        labels: Names of the classes in the order of the outputs, or a file of them.
        calibration: Real inputs to compare the artifact with Keras on (csv, tsv, jsonl, txt, npz). Without, valid random
            ids are used, and the manifest says so.
        validation: Labelled data: the accuracy of Keras and of each artifact stands in the manifest. Of a language model,
            text: the perplexity.
        sequence_length: The most tokens that the artifact takes; of a language model, prompt and answer together.
        chat_template: Of a language model: a file with the Jinja template that turns messages into a prompt.
        cache_lengths: Of a language model as TFLite: positions of its caches. A short conversation takes a short one. The
            longest is the context.
        prefill_lengths: Of a language model as TFLite: tokens of a prompt that one call takes.
        custom_objects: A Python file that defines the model's own layers. It is run.
        force: Replace a bundle that exists.
        progress: Called with the step's description, and how much of it is done.

    Returns:
        The bundle's path and manifest.

    Raises:
        EdgelmError: Something does not fit; nothing was written, and the message says what to do.
    """
    request = Request(
        name=Path(output).stem,
        targets=None if to is None else _targets(to),
        recipe=recipes.find(recipe),
        tokenizer=tokenizer,
        labels=labels,
        calibration=calibration,
        validation=validation,
        sequence_length=sequence_length,
        chat_template=chat_template,
        cache_lengths=None if cache_lengths is None else tuple(cache_lengths),
        prefill_lengths=None if prefill_lengths is None else tuple(prefill_lengths),
    )
    for target in request.targets or _RUN_TARGETS:
        for package in _PACKAGES[target]:
            require(package, what=f"target '{target}'")
    with BundleWriter(Path(output), force=force) as writer:
        progress("Reading the model", 0, 1)
        source = load_source(model, custom_objects=Path(custom_objects) if custom_objects is not None else None)
        reference = make_reference(source)
        recognition = _recognise(source, reference, sequence_length)
        generates = recognition.spec is not None and recognition.spec.generates
        make = make_language_model if generates else _make_run_model
        manifest = writer.finish(make(request, source, reference, recognition, writer.folder, progress))
    return Conversion(Path(output), manifest)


def _make_run_model(
    request: Request, source: Source, reference: Reference, recognition: Recognition, folder: Path, progress: Progress
) -> Manifest:
    """Write the files of a model whose one run is its answer: a classifier, an embedder, anything traced."""
    _refuse_language_options(request, recognition)
    tokens = find_tokens(request.tokenizer, source, recognition.spec)
    lengths = choose_lengths(reference, recognition.spec, tokens, request.sequence_length)
    tokens = tokens.cut_at(lengths.maximum)
    names = _label_names(request.labels)
    progress("Reading the model", 1, 1)

    sets = _sample_sets(reference, tokens, lengths, names, request.calibration, request.validation, recognition.spec)
    output_name = recognition.spec.output_name if recognition.spec else None
    expected = [
        expect(
            reference, samples, lengths=lengths.reference, pad_id=tokens.pad_id, output=output_name,
            tick=lambda done, total: progress("Asking Keras", done, total),
        )
        for samples in sets
    ]  # fmt: skip
    role = _output_role(recognition.spec, source, expected[0], names)
    _check_labels(names, sets, expected[0], role)

    spec = recognition.spec
    if spec is not None and lengths.padding == "full":
        spec = dataclasses.replace(spec, fixed_length=lengths.maximum)
    emitter = _Emitter(source, reference, spec, lengths, role, request.recipe.name, folder)
    artifacts = [
        _make_artifact(target, emitter, sets, expected, request.recipe, tokens.pad_id, progress)
        for target in request.targets or _RUN_TARGETS
    ]
    write_golden(folder, _golden(sets[0].samples, expected[0], artifacts[0].signatures[0]))
    if tokens.tokenizer is not None:
        tokens.tokenizer.save(str(folder / "tokenizer.json"))
    return Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        name=request.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task=_task(role),
        padding=lengths.padding,
        recipe=request.recipe.name,
        model=model_record(source, recognition),
        artifacts=tuple(artifacts),
        tokenizer=tokens.record(),
        labels=names,
        golden="golden.npz",
        files={},
        tool_versions=tool_versions(),
        notes=(*tokens.notes, *lengths.notes),
    )


def _refuse_language_options(request: Request, recognition: Recognition) -> None:
    """Refuse what only a language model can be given.

    Raises:
        RecipeError: A recipe or a target of language models was asked for.
        InputError: An option of theirs was given.
    """
    what = (
        "an encoder" if recognition.spec is not None else f"not recognised as a language model ({recognition.reason})"
    )
    if request.targets and "litertlm" in request.targets:
        raise RecipeError(f"A .litertlm file holds a language model, and this model is {what}: use --to tflite.")
    given = {
        "--chat-template": request.chat_template,
        "--cache-length": request.cache_lengths,
        "--prefill-length": request.prefill_lengths,
    }
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} is for language models, and this model is {what}.")


def _targets(to: Sequence[str]) -> tuple[Format, ...]:
    names = (to,) if isinstance(to, str) else tuple(to)
    for name in names:
        if name not in _PACKAGES:
            raise RecipeError(unknown_name("target", name, _PACKAGES))
    if not names:
        raise RecipeError("No target was named: give 'tflite', 'onnx' or both.")
    return tuple(name for name in _PACKAGES if name in names)


def _recognise(source: Source, reference: Reference, sequence_length: int | None) -> Recognition:
    if source.kind == "saved_model":
        return Recognition(None, None, "a SavedModel holds operations, not layers")
    recognition = recognise(source.model, sequence_length)
    if recognition.spec is not None and len(reference.inputs) == 1:
        spec = dataclasses.replace(recognition.spec, token_input=reference.inputs[0].name)
        return dataclasses.replace(recognition, spec=spec)
    return recognition


def _label_names(labels: str | Path | Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    return read_labels(Path(labels)) if isinstance(labels, (str, Path)) else tuple(labels)


def _sample_sets(
    reference: Reference,
    tokens: Tokens,
    lengths: Lengths,
    names: tuple[str, ...] | None,
    calibration: str | Path | None,
    validation: str | Path | None,
    spec: TransformerSpec | None,
) -> list[SampleSet]:
    """Return the sets to compare on: the calibration data, the validation data, or random ids."""
    datasets: list[Dataset | None] = []
    if calibration is not None:
        data = read_dataset(Path(calibration))
        datasets.append(data if validation is None and data.labels is not None else _thin(data, _PARITY_SAMPLES))
    if validation is not None:
        data = read_dataset(Path(validation))
        if data.labels is None:
            raise InputError(f"{data.name} holds no labels: validation data need a label for each sample.")
        datasets.append(data)
    return [
        make_samples(
            reference, data, tokenizer=tokens.tokenizer, labels=names,
            vocabulary_size=spec.vocabulary_size if spec else tokens.vocabulary_size, max_length=lengths.maximum,
        )
        for data in datasets or [None]
    ]  # fmt: skip


def _thin(data: Dataset, count: int) -> Dataset:
    """Return at most `count` samples, evenly spread over the file."""
    if len(data) <= count:
        return data
    rows = np.linspace(0, len(data) - 1, count).astype(int)
    return Dataset(
        data.name,
        tuple(data.texts[row] for row in rows) if data.texts is not None else None,
        {name: array[rows] for name, array in data.arrays.items()} if data.arrays is not None else None,
        tuple(data.labels[row] for row in rows) if data.labels is not None else None,
    )


def _output_role(
    spec: TransformerSpec | None, source: Source, expected: Expected, names: tuple[str, ...] | None
) -> Role:
    """Say what the first output means: as the spec has it, or from a traced model's last activation and its values."""
    if spec is not None:
        # A row for each token (tagging) is not one choice: an application reads it as it is.
        return "raw" if spec.head.pooling == "none" else spec.head.output
    answers = [next(iter(outputs.values())) for outputs in expected.outputs if outputs][:64]
    if any(answer.ndim != 1 or answer.shape != answers[0].shape for answer in answers):
        return "raw"  # a row for each token
    values = np.stack(answers)
    if values.shape[1] > 1 and (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        return "probabilities"
    layers = getattr(source.model, "layers", None) or [None]
    if getattr(getattr(layers[-1], "activation", None), "__name__", "") == "sigmoid":
        return "sigmoid"
    return "logits" if names is not None else "raw"


def _check_labels(names: tuple[str, ...] | None, sets: Sequence[SampleSet], expected: Expected, role: Role) -> None:
    """Hold the labels, the data's and the names', against the model's classes."""
    highest = max(
        (sample.label for samples in sets for sample in samples.samples if sample.label is not None), default=None
    )
    if names is None and highest is None:
        return
    if role not in ("logits", "probabilities", "sigmoid"):
        raise InputError(f"Labels were given, but the model's output is no choice between classes (it is '{role}').")
    outputs = int(np.size(next(iter(expected.outputs[0].values()))))
    classes = 2 if outputs == 1 else outputs
    if names is not None and len(names) != classes:
        raise InputError(f"There are {len(names)} labels, and the model has {classes} classes: give one name for each.")
    if highest is not None and highest >= classes:
        raise InputError(f"The data hold the label {highest}, and the model has the classes 0 to {classes - 1}.")


def _task(role: Role) -> Task:
    if role in ("logits", "probabilities", "sigmoid"):
        return "classify"
    return "embed" if role == "embedding" else "raw"


@dataclass(frozen=True)
class _Emitter:
    """Writes a model in a format: the recognised way where there is a spec, else the traced way."""

    source: Source
    reference: Reference
    spec: TransformerSpec | None
    lengths: Lengths
    role: Role
    recipe: str
    folder: Path

    def emit(self, target: Format) -> tuple[Path, tuple[Signature, ...], dict[str, int]]:
        """Return the file, its signatures and its operators."""
        from edgelm_converters.emit import onnx, tflite

        path = self.folder / f"model.{target}"
        if target == "tflite":
            if self.spec is not None:
                signatures = tflite.emit_tflite(self.spec, path, recipe=self.recipe, lengths=self.lengths.buckets)
            else:
                buckets = self.lengths.buckets or (None,)
                signatures = trace.trace_tflite(
                    self.source, self.reference, path, recipe=self.recipe, lengths=buckets, role=self.role
                )
            return path, signatures, tflite.operator_histogram(path)
        if self.spec is not None:
            signatures = onnx.emit_onnx(self.spec, path, recipe=self.recipe)
        else:
            length = self.lengths.maximum if self.lengths.padding == "full" else None
            signatures = trace.trace_onnx(
                self.source, self.reference, path, recipe=self.recipe, length=length, role=self.role
            )
        return path, signatures, onnx.operator_histogram(path)


def _make_artifact(
    target: Format,
    emitter: _Emitter,
    sets: Sequence[SampleSet],
    expected: Sequence[Expected],
    recipe: recipes.Recipe,
    pad_id: int,
    progress: Progress,
) -> Artifact:
    """Emit one format, run it in its runtime, and hold it against Keras."""
    progress(f"Writing {target}", 0, 1)
    path, signatures, operators = emitter.emit(target)
    signatures = tuple(_with_role(signature, emitter.role) for signature in signatures)
    progress(f"Writing {target}", 1, 1)
    try:
        program = open_program(TARGETS[target], path, signatures, ProgramOptions())
    except RuntimeUnavailableError as error:
        raise ConversionError(
            f"The {target} file was written, but {TARGETS[target]} does not open it: {error}"
        ) from error
    try:
        results: list[tuple[Parity, Accuracy | None]] = []
        for samples, answers in zip(sets, expected, strict=True):
            results.append(
                compare(
                    program, signatures, samples, answers, recipe=recipe, pad_id=pad_id,
                    tick=lambda done, total: progress(f"Checking {target} against Keras", done, total),
                )
            )  # fmt: skip
        runtimes = [RuntimeRecord(TARGETS[target], "verified", program.facts.runtime_version)]
    except ExecutionError as error:
        raise ConversionError(f"The {target} file opens in {TARGETS[target]}, but does not run: {error}") from error
    finally:
        program.close()
    if target == "tflite":
        refused = recipe.name == "dynamic_wi8_afp32"
        reason = _TFLITE_RUNTIME_REFUSAL if refused else "not run here"
        runtimes.append(RuntimeRecord("tflite", "refused" if refused else "untested", None, reason))
    data_files = tuple(sorted(file.name for file in emitter.folder.glob(f"{path.name}.*")))
    return Artifact(
        format=target,
        file=path.name,
        data_files=data_files,
        size_bytes=sum((emitter.folder / name).stat().st_size for name in (path.name, *data_files)),
        signatures=signatures,
        runtimes=tuple(runtimes),
        parity=results[0][0],
        accuracy=next((accuracy for _, accuracy in reversed(results) if accuracy is not None), None),
        operators=operators,
    )


def _with_role(signature: Signature, role: Role) -> Signature:
    first, *others = signature.outputs
    return dataclasses.replace(signature, outputs=(dataclasses.replace(first, role=role), *others))


def _golden(samples: Sequence[Sample], expected: Expected, signature: Signature) -> list[GoldenCase]:
    """Choose a few samples, short to long, with Keras's answers: what a device checks itself with.

    Of each length the one that Keras is surest of: where two labels are as good, rounding decides, which proves nothing.
    """
    port = feed.token_port(signature)
    tokens = port.name if port else None
    by_length = sorted(range(len(samples)), key=lambda index: samples[index].length(tokens) if tokens else 0)
    strata = np.array_split(np.asarray(by_length), min(_GOLDEN_CASES, len(samples)))
    picked = [max(stratum.tolist(), key=lambda index: _margin(expected.outputs[index])) for stratum in strata]
    names = [port.name for port in signature.outputs]
    cases = []
    for index in picked:
        sample, answer = samples[index], expected.outputs[index]
        outputs = answer if set(names) <= set(answer) else dict(zip(names, answer.values(), strict=True))
        dtypes = {port.name: port.dtype for port in signature.inputs}
        cases.append(
            GoldenCase(
                text=sample.text,
                ids=None if tokens is None or sample.text is None else sample.inputs[tokens][0].tolist(),
                inputs={name: value.astype(dtypes[name]) for name, value in sample.inputs.items()},
                outputs={name: outputs[name][None].astype(np.float32) for name in names},
            )
        )
    return cases


def _margin(outputs: Mapping[str, NDArray[Any]]) -> float:
    """Return how far the highest value of the first output is above the next one."""
    values = np.sort(np.ravel(next(iter(outputs.values()))))
    return float(values[-1] - values[-2]) if values.size > 1 else 0.0
