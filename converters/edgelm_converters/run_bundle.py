"""A model whose one run is its answer becomes a whole bundle: a classifier, an embedder, anything that was traced."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgelm_runtimes import feed
from numpy.typing import NDArray

from edgelm.bundle import (
    FORMAT,
    SCHEMA_VERSION,
    Artifact,
    CalibrationRecord,
    GoldenCase,
    Manifest,
    Signature,
    write_golden,
)
from edgelm.bundle.manifest import Format
from edgelm.errors import InputError, RecipeError
from edgelm_converters.compress.apply import Compressed, compress
from edgelm_converters.data import Dataset, read_dataset, thin
from edgelm_converters.families import Recognition
from edgelm_converters.lengths import Lengths, choose_lengths
from edgelm_converters.parity import Expected, accuracy_of, expect
from edgelm_converters.records import calibration_record, model_record, tool_versions
from edgelm_converters.reference import Reference
from edgelm_converters.request import Progress, Request
from edgelm_converters.run_artifact import Emitter, Question, make_artifact
from edgelm_converters.run_labels import check_labels, label_names, output_role, task_of
from edgelm_converters.samples import Sample, SampleSet, make_samples
from edgelm_converters.source import Source
from edgelm_converters.targets import aim_note, check_file
from edgelm_converters.tokens import Tokens, find_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["make_run_model"]

_TARGETS: tuple[Format, ...] = ("tflite", "onnx")
_GOLDEN_CASES = 8
_PARITY_SAMPLES = 512  # enough to see one label in a hundred change; the labelled data are run whole for the accuracy


@dataclass(frozen=True)
class _Subject:
    """A model to write, and its answers to every set of samples."""

    source: Source
    reference: Reference
    recognition: Recognition
    tokens: Tokens
    lengths: Lengths
    sets: Sequence[SampleSet]
    expected: Sequence[Expected]


def make_run_model(
    request: Request, source: Source, reference: Reference, recognition: Recognition, folder: Path, progress: Progress
) -> Manifest:
    """Write the files of a model into a bundle's folder, each checked against Keras.

    Args:
        request: What the user asked for.
        source: The Keras model.
        reference: The same as a function.
        recognition: Its spec, or why there is none.
        folder: Where to.
        progress: Called with the step's description, and how much of it is done.

    Returns:
        The manifest, without its list of files.

    Raises:
        EdgelmError: Something does not fit; the message says what to do.
    """
    _refuse_language_options(request, recognition)
    tokens = find_tokens(request.tokenizer, source, recognition.spec)
    lengths = choose_lengths(reference, recognition.spec, tokens, request.sequence_length)
    if request.aimed is not None and request.aimed.one_length:
        lengths = lengths.of_one_shape()
    tokens = tokens.cut_at(lengths.maximum)
    names = label_names(request.labels)
    datasets = _datasets(request)
    progress("Reading the model", 1, 1)

    given = _ask(source, reference, recognition, tokens, lengths, datasets, names, progress)
    role = output_role(recognition.spec, source, given.expected[0], names)
    check_labels(names, given.sets, given.expected[0], role)
    accuracies = [accuracy_of(*pair, role) for pair in zip(given.expected, given.sets, strict=True)]
    accuracy = next((share for share in reversed(accuracies) if share is not None), None)

    compressed = _compress(request, given, datasets, names, progress) if request.chain.steps else None
    subject = given if compressed is None else _asked_again(given, compressed, datasets, names, progress)
    spec = subject.recognition.spec
    if spec is not None and lengths.padding == "full":
        spec = dataclasses.replace(spec, fixed_length=lengths.maximum)
    calibration = None if request.calibration is None else subject.sets[0].spread(_PARITY_SAMPLES)
    emitter = Emitter(subject.source, subject.reference, lengths, role, request.chain, calibration)
    question = Question(subject.sets, subject.expected, subject.tokens.pad_id, accuracy)
    artifacts = [
        make_artifact(target, emitter, spec, question, folder, progress) for target in request.targets or _TARGETS
    ]
    write_golden(folder, _golden(subject.sets[0].samples, subject.expected[0], artifacts[0].signatures[0]))
    if subject.tokens.tokenizer is not None:
        subject.tokens.tokenizer.save(str(folder / "tokenizer.json"))
    return Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        name=request.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task=task_of(role),
        padding=lengths.padding,
        recipe=request.recipe.name,
        model=model_record(source, recognition),
        artifacts=tuple(artifacts),
        tokenizer=subject.tokens.record(),
        labels=names,
        golden="golden.npz",
        files={},
        tool_versions=tool_versions(),
        notes=(*tokens.notes, *lengths.notes, *_aim_notes(request, lengths, artifacts, folder)),
        compression=compressed.steps if compressed is not None else (),
        calibration=_calibration(request, subject),
    )


def _aim_notes(request: Request, lengths: Lengths, artifacts: Sequence[Artifact], folder: Path) -> tuple[str, ...]:
    """Return what was chosen for the target, and how its files look to it.

    Raises:
        ConversionError: One holds what the target computes wrongly.
    """
    if request.aimed is None:
        return ()
    formats: tuple[Format, ...] = tuple(artifact.format for artifact in artifacts)
    notes = [aim_note(request.aimed, request.chain, formats, lengths)]
    for artifact in artifacts:
        if artifact.format == "tflite":
            notes += check_file(request.aimed, folder / artifact.file)
    return tuple(notes)


def _calibration(request: Request, subject: _Subject) -> CalibrationRecord | None:
    """Return what was fitted on; None where nothing was, and the data were compared on alone."""
    if request.calibration is None or not request.chain.fits:
        return None
    samples, port = subject.sets[0].spread(_PARITY_SAMPLES).samples, subject.reference.token_input
    tokens = sum(sample.length(port.name) for sample in samples) if port is not None else None
    return calibration_record(
        Path(request.calibration), samples=len(samples), tokens=tokens, ranges=request.chain.chosen_ranges
    )


def _refuse_language_options(request: Request, recognition: Recognition) -> None:
    """Refuse what only a language model can be given.

    Raises:
        RecipeError: A target of language models was asked for.
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


def _datasets(request: Request) -> list[Dataset | None]:
    """Return the data to compare on: calibration, validation or both; None stands for random ids."""
    datasets: list[Dataset | None] = []
    if request.calibration is not None:
        data = read_dataset(Path(request.calibration))
        whole = request.validation is None and data.labels is not None
        datasets.append(data if whole else thin(data, _PARITY_SAMPLES))
    if request.validation is not None:
        data = read_dataset(Path(request.validation))
        if data.labels is None and (request.chain.gate is None or request.chain.gate.metric == "accuracy"):
            raise InputError(f"{data.name} holds no labels: validation data need a label for each sample.")
        datasets.append(data)
    return datasets or [None]


def _ask(
    source: Source,
    reference: Reference,
    recognition: Recognition,
    tokens: Tokens,
    lengths: Lengths,
    datasets: Sequence[Dataset | None],
    names: tuple[str, ...] | None,
    progress: Progress,
) -> _Subject:
    """Let Keras answer to all of the data."""
    spec = recognition.spec
    sets = [
        make_samples(
            reference, data, tokenizer=tokens.tokenizer, labels=names,
            vocabulary_size=spec.vocabulary_size if spec else tokens.vocabulary_size, max_length=lengths.maximum,
        )
        for data in datasets
    ]  # fmt: skip
    expected = [
        expect(
            reference, samples, lengths=lengths.reference, pad_id=tokens.pad_id, output=spec.output_name if spec else None,
            tick=lambda done, total: progress("Asking Keras", done, total),
        )
        for samples in sets
    ]  # fmt: skip
    return _Subject(source, reference, recognition, tokens, lengths, sets, expected)


def _compress(
    request: Request,
    given: _Subject,
    datasets: Sequence[Dataset | None],
    names: tuple[str, ...] | None,
    progress: Progress,
) -> Compressed:
    data = datasets[0] if request.calibration is not None else None

    def encode(tokenizer: Tokenizer | None) -> Sequence[NDArray[np.int32]] | None:
        if data is None:
            return None
        samples = make_samples(
            given.reference,
            data,
            tokenizer=tokenizer,
            labels=names,
            vocabulary_size=None,
            max_length=given.lengths.maximum,
        )
        port = given.reference.token_input
        return [sample.inputs[port.name][0] for sample in samples.samples] if port is not None else None

    return compress(
        request.chain.steps, given.source, given.recognition, given.tokens.tokenizer,
        encode=encode, pad_id=given.tokens.pad_id, labels=names, sequence_length=given.lengths.maximum, progress=progress,
    )  # fmt: skip


def _asked_again(
    given: _Subject,
    compressed: Compressed,
    datasets: Sequence[Dataset | None],
    names: tuple[str, ...] | None,
    progress: Progress,
) -> _Subject:
    """Let the smaller Keras model answer."""
    recognition = dataclasses.replace(given.recognition, spec=compressed.spec)
    tokens = given.tokens.with_tokenizer(compressed.tokenizer, compressed.spec.vocabulary_size)
    if compressed.ids is not None and any(data is not None and data.texts is None for data in datasets):
        raise RecipeError("The data are ids of the whole vocabulary, and it was trimmed: give texts instead.")
    return _ask(compressed.source, compressed.reference, recognition, tokens, given.lengths, datasets, names, progress)


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
