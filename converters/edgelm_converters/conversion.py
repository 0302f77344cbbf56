"""One call from a Keras model to a verified bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.bundle import BundleWriter, Manifest
from edgelm.bundle.manifest import Format
from edgelm.errors import RecipeError, unknown_name
from edgelm_converters.chain import Chain, chain_of_options, read_chain
from edgelm_converters.families import Recognition, recognise
from edgelm_converters.frameworks import require
from edgelm_converters.gate import make_gate
from edgelm_converters.language_bundle import make_language_model
from edgelm_converters.reference import Reference, make_reference
from edgelm_converters.request import Progress, Request
from edgelm_converters.run_bundle import make_run_model
from edgelm_converters.source import Source, load_source
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.targets import aim_at, default_recipe, find_target, refuse_model
from edgelm_converters.translation_bundle import make_translation_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Conversion", "Progress", "convert"]

_RUN_TARGETS: tuple[Format, ...] = ("tflite", "onnx")
_PACKAGES: dict[Format, tuple[str, ...]] = {
    "tflite": ("ai_edge_litert", "flatbuffers"),
    "onnx": ("onnx", "onnxruntime"),
    "litertlm": ("ai_edge_litert", "flatbuffers", "litert_lm_builder"),
}


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
    target: str | None = None,
    recipe: str | Path | None = None,
    prune: str | None = None,
    trim_vocabulary: str | Path | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    sensitivity: bool = False,
    ranges: str | None = None,
    integer_io: bool = False,
    tokenizer: str | Path | Tokenizer | None = None,
    target_tokenizer: str | Path | Tokenizer | None = None,
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
        target: What it is for: a name of `edgelm_converters.targets`, such as ``gpu``, ``edgetpu``, ``npu-qnn`` or
            ``tflite-runtime``; a device profile's name, or a profile's TOML file. It chooses what is left out of `to`,
            `recipe`, `integer_io` and the lengths, and refuses what contradicts it; the manifest's notes say what it chose.
        recipe: A name of `edgelm_converters.recipes`, such as ``fp16``, ``int8`` or ``int4``; or a TOML file with a whole chain
            (`edgelm_converters.chain`), which then holds what `prune` to `integer_io` would say. None is the target's, or
            ``int8``.
        prune: What to remove, such as ``heads=0.25,ffn=0.3,layers=2`` (`edgelm_converters.compress.pruning`).
        trim_vocabulary: Texts of the kind that the model is for: tokens that they do not need are removed.
        metric: What must be kept on the validation data: ``accuracy``, ``perplexity``, ``bleu`` or ``parity``.
        max_drop: The most of it that may be lost: points of an accuracy (0.01 is one of a hundred), a share of a perplexity, an
            error as a share of the largest output. Parts of the model are kept in more bits until it holds.
        sensitivity: Measure what each part of the model costs, even where none has to be kept in more bits.
        ranges: Of a static recipe: ``minmax``, ``percentile`` or ``mse``.
        integer_io: Of a static recipe: whether inputs and outputs are integers too, as an Edge TPU wants them.
        tokenizer: A ``tokenizer.json``, ``vocab.txt``, SentencePiece ``.model`` or preset folder, or a
            `tokenizers.Tokenizer`. A KerasHub task brings its own.
        target_tokenizer: Of an encoder-decoder whose answers have a vocabulary of their own: that one's.
        labels: Names of the classes in the order of the outputs, or a file of them.
        calibration: Real inputs to compare the artifact with Keras on (csv, tsv, jsonl, txt, npz). Without, valid random
            ids are used, and the manifest says so.
        validation: Labelled data: the accuracy of Keras and of each artifact stands in the manifest. Of a language model,
            text: the perplexity. Of an encoder-decoder, texts and their translations, in the columns source and target.
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
    aimed = None if target is None else find_target(target)
    chain = _chain(
        default_recipe(aimed) if recipe is None else recipe, prune=prune, trim_vocabulary=trim_vocabulary, metric=metric,
        max_drop=max_drop, sensitivity=sensitivity, ranges=ranges, integer_io=integer_io,
    )  # fmt: skip
    formats = None if to is None else _targets(to)
    if aimed is not None:
        aim = aim_at(aimed, chain, formats)
        chain, formats = aim.chain, aim.formats
    request = Request(
        name=Path(output).stem,
        targets=formats,
        chain=chain,
        aimed=aimed,
        tokenizer=tokenizer,
        target_tokenizer=target_tokenizer,
        labels=labels,
        calibration=calibration,
        validation=validation,
        sequence_length=sequence_length,
        chat_template=chat_template,
        cache_lengths=None if cache_lengths is None else tuple(cache_lengths),
        prefill_lengths=None if prefill_lengths is None else tuple(prefill_lengths),
    )
    for name in request.targets or _RUN_TARGETS:
        for package in _PACKAGES[name]:
            require(package, what=f"target '{name}'")
    with BundleWriter(Path(output), force=force) as writer:
        progress("Reading the model", 0, 1)
        source = load_source(model, custom_objects=Path(custom_objects) if custom_objects is not None else None)
        reference = make_reference(source)
        recognition = _recognise(source, reference, sequence_length)
        if aimed is not None:
            refuse_model(aimed, recognition.spec, recognition.reason)
        make = _maker(recognition.spec)
        manifest = writer.finish(make(request, source, reference, recognition, writer.folder, progress))
    return Conversion(Path(output), manifest)


def _maker(spec: TransformerSpec | None) -> Callable[..., Manifest]:
    """Return what makes the bundle of such a model."""
    if spec is not None and spec.translates:
        return make_translation_model
    return make_language_model if spec is not None and spec.generates else make_run_model


def _chain(
    recipe: str | Path,
    *,
    prune: str | None,
    trim_vocabulary: str | Path | None,
    metric: str | None,
    max_drop: float | None,
    sensitivity: bool,
    ranges: str | None,
    integer_io: bool,
) -> Chain:
    """Return what is to be done, from the options or from the file that stands in their place."""
    if not str(recipe).endswith(".toml"):
        gate = make_gate(metric, max_drop, sensitivity=sensitivity)
        return chain_of_options(
            str(recipe), trim_vocabulary=trim_vocabulary, prune=prune, ranges=ranges, integer_io=integer_io, gate=gate
        )
    given = {
        "--prune": prune, "--trim-vocabulary": trim_vocabulary, "--metric": metric, "--max-drop": max_drop,
        "--sensitivity": sensitivity or None, "--ranges": ranges, "--integer-io": integer_io or None,
    }  # fmt: skip
    twice = [option for option, value in given.items() if value is not None]
    if twice:
        raise RecipeError(
            f"{twice[0]} was given beside {recipe}: what is done stands in the file alone; write it there."
        )
    return read_chain(Path(recipe))


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
