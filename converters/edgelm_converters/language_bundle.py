"""A recognised language model becomes a whole bundle: tokenizer, settings, golden vectors and every file that was asked for."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import FORMAT, SCHEMA_VERSION, CalibrationRecord, CompressionStep, Manifest, write_golden
from edgelm.bundle.manifest import Format
from edgelm.errors import ConversionError, InputError
from edgelm_converters.causal_parity import Sequences
from edgelm_converters.causal_reference import Scores, keras_scores
from edgelm_converters.compress.apply import Compressed, compress
from edgelm_converters.data import Dataset, read_dataset
from edgelm_converters.families import Recognition
from edgelm_converters.generation import find_chat_template, generation_record
from edgelm_converters.language import LanguageModel, choose_context, golden_cases, make_sequences
from edgelm_converters.language_artifact import LANGUAGE_TARGETS, Judge, make_language_artifacts
from edgelm_converters.prepare import prepare_weights
from edgelm_converters.records import calibration_record, model_record, tool_versions
from edgelm_converters.reference import Reference
from edgelm_converters.request import Progress, Request
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.tokens import Tokens, find_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["make_language_model"]

_CHAT_TEMPLATE = "chat_template.jinja"
_EVENED = "dynamic_wi8_afp32"  # under it weights are rotated and scaled, and stay float32


def make_language_model(
    request: Request, source: Source, reference: Reference, recognition: Recognition, folder: Path, progress: Progress
) -> Manifest:
    """Write the files of a language model into a bundle's folder, each checked against Keras.

    Args:
        request: What the user asked for.
        source: The Keras model.
        reference: The same as a function.
        recognition: Its spec.
        folder: Where to.
        progress: Called with the step's description, and how much of it is done.

    Returns:
        The manifest, without its list of files.

    Raises:
        EdgelmError: Something does not fit; the message says what to do.
    """
    spec = recognition.spec
    if spec is None:
        raise ConversionError(f"The model is not recognised as a language model: {recognition.reason}.")
    if request.labels is not None:
        raise InputError("Labels were given, but the model generates text: it has no classes.")
    tokens = find_tokens(request.tokenizer, source, spec)
    context, notes = choose_context(spec, request.sequence_length, tokens.max_length)
    tokens = tokens.bounded_by(context)
    template, template_notes = find_chat_template(source, tokens.tokenizer, request.chat_template, folder=source.folder)
    model = LanguageModel(
        spec=spec,
        recipe=request.recipe,
        generation=generation_record(
            source, tokens.tokenizer, spec, context_length=context, chat_template=_CHAT_TEMPLATE if template else None
        ),
        tokenizer=tokens.tokenizer,
        chat_template=template,
        caches=_caches(request, context),
        prefill=request.prefill_lengths,
    )
    targets, target_notes = _targets(request, tokens)
    progress("Reading the model", 1, 1)

    calibration, validation = (
        None if file is None else read_dataset(Path(file)) for file in (request.calibration, request.validation)
    )
    given: Sequence[Dataset | None] = [data for data in (calibration, validation) if data is not None] or [None]

    def asked(model: LanguageModel, scores: Scores) -> list[Sequences]:
        return [
            make_sequences(scores, data, model, tick=lambda done, total: progress("Asking Keras", done, total))
            for data in given
        ]

    sets = asked(model, keras_scores(source.model, reference, spec))
    perplexity = sets[-1].perplexity
    steps: tuple[CompressionStep, ...] = ()
    if request.chain.steps:
        compressed = _compress(request, source, recognition, tokens, model, calibration, progress)
        tokens = tokens.with_tokenizer(compressed.tokenizer, compressed.spec.vocabulary_size)
        model, steps = _smaller(model, compressed), compressed.steps
        sets = asked(model, keras_scores(compressed.source.model, compressed.reference, compressed.spec))
    if tokens.tokenizer is not None:
        tokens.tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / _CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    fitted = _Fitted(request.recipe.name, _calibration_ids(calibration, tokens), progress)
    judge = Judge(sets, request.chain.gate, perplexity, fitted.prepared, fitted.evened)
    artifacts = make_language_artifacts(model, targets, folder, judge, progress)
    write_golden(folder, golden_cases(sets[0], tokens.tokenizer))
    return Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        name=request.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task="generate",
        padding="masked",
        recipe=request.recipe.name,
        model=model_record(source, recognition),
        artifacts=artifacts,
        tokenizer=tokens.record(),
        labels=None,
        golden="golden.npz",
        files={},
        tool_versions=tool_versions(),
        notes=(*tokens.notes, *notes, *template_notes, *target_notes, *fitted.notes),
        generation=model.generation,
        compression=steps,
        calibration=_calibration(request, calibration, fitted),
    )


class _Fitted:
    """Fits weights to a recipe, once for the same model: every format and every step of a ladder asks for it."""

    def __init__(self, recipe: str, ids: list[NDArray[np.int32]] | None, progress: Progress) -> None:
        self.ids = ids
        self.notes: tuple[str, ...] = ()
        self._recipe = recipe
        self._progress = progress
        self._last: tuple[TransformerSpec, TransformerSpec] | None = None

    def prepared(self, spec: TransformerSpec) -> TransformerSpec:
        """Return a model whose weights are ready to be stored."""
        if self._last is None or self._last[0] is not spec:
            prepared, self.notes = prepare_weights(spec, self._recipe, self.ids, self._progress)
            self._last = spec, prepared
        return self._last[1]

    def evened(self, spec: TransformerSpec) -> TransformerSpec:
        """Return a model whose weights are ready but for being rounded."""
        return prepare_weights(spec, _EVENED, self.ids, self._progress)[0]


def _compress(
    request: Request,
    source: Source,
    recognition: Recognition,
    tokens: Tokens,
    model: LanguageModel,
    calibration: Dataset | None,
    progress: Progress,
) -> Compressed:
    def encode(tokenizer: Tokenizer | None) -> list[NDArray[np.int32]] | None:
        return _calibration_ids(calibration, dataclasses.replace(tokens, tokenizer=tokenizer))

    generation = model.generation
    kept = [*generation.stop_ids, *([] if generation.start_id is None else [generation.start_id])]
    return compress(
        request.chain.steps, source, recognition, tokens.tokenizer, encode=encode, pad_id=tokens.pad_id,
        sequence_length=generation.context_length, keep=kept,
        chat_template=model.chat_template, progress=progress,
    )  # fmt: skip


def _smaller(model: LanguageModel, compressed: Compressed) -> LanguageModel:
    """Return a model after its steps: the ids that begin and end a text have other numbers where the vocabulary shrank."""
    generation, ids = model.generation, compressed.ids
    if ids is not None:
        generation = dataclasses.replace(
            generation,
            vocabulary_size=compressed.spec.vocabulary_size,
            start_id=None if generation.start_id is None else ids[generation.start_id],
            stop_ids=tuple(ids[index] for index in generation.stop_ids),
        )
    return dataclasses.replace(model, spec=compressed.spec, tokenizer=compressed.tokenizer, generation=generation)


def _calibration(request: Request, data: Dataset | None, fitted: _Fitted) -> CalibrationRecord | None:
    """Return what weights were fitted on; None where it was text that the model wrote itself, which a note says."""
    if data is None or request.calibration is None or fitted.ids is None:
        return None
    tokens = sum(map(len, fitted.ids))
    return calibration_record(
        Path(request.calibration), samples=len(fitted.ids), tokens=tokens, ranges=request.chain.chosen_ranges
    )


def _caches(request: Request, context: int) -> tuple[int, ...] | None:
    """Return the cache lengths that were asked for, with the context as the longest."""
    asked = request.cache_lengths
    if asked is None:
        return None
    if min(asked) < 2 or max(asked) > context:
        raise InputError(
            f"Cache lengths are between 2 and the context, {context}, and {sorted(asked)} were given: a longer context is set "
            "with --sequence-length."
        )
    return tuple(sorted({*asked, context}))


def _targets(request: Request, tokens: Tokens) -> tuple[tuple[Format, ...], tuple[str, ...]]:
    """Return the formats to write, and a note where one that is usual is left out."""
    if request.targets is not None:
        return request.targets, ()
    if tokens.tokenizer is None:
        return ("tflite", "onnx"), ("No .litertlm was written: it holds a tokenizer, and none is known (--tokenizer).",)
    if importlib.util.find_spec("litert_lm_builder") is None:
        return ("tflite", "onnx"), ("No .litertlm was written: pip install litert-lm-builder, and convert again.",)
    return tuple(LANGUAGE_TARGETS), ()


def _calibration_ids(data: Dataset | None, tokens: Tokens) -> list[NDArray[np.int32]] | None:
    """Return the user's calibration text as ids; None where there is none. The validation text stays unseen."""
    if data is None or data.texts is None or tokens.tokenizer is None:
        return None  # the comparison says what is wrong with arrays
    encoded = tokens.tokenizer.encode_batch(list(data.texts))
    return [np.asarray(entry.ids, np.int32) for entry in encoded if entry.ids]
