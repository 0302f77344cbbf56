"""A recognised encoder-decoder becomes a whole bundle: tokenizers, settings, golden vectors and the files asked for."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm_runtimes.seq2seq_program import Seq2SeqProgram

from edgelm.bundle import FORMAT, SCHEMA_VERSION, Manifest, TokenizerRecord, write_golden
from edgelm.bundle.manifest import Format
from edgelm.errors import ConversionError, InputError, RecipeError
from edgelm_converters.bleu import bleu, greedy_by_keras, greedy_by_program
from edgelm_converters.data import Dataset, read_dataset, thin
from edgelm_converters.families import Recognition
from edgelm_converters.records import model_record, tool_versions
from edgelm_converters.reference import Reference
from edgelm_converters.request import Progress, Request
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.tokens import Tokens, find_tokens
from edgelm_converters.translation import TranslationModel, choose_lengths, translation_record
from edgelm_converters.translation_artifact import TranslationJudge, make_translation_artifacts
from edgelm_converters.translation_file import TRANSLATION_TARGETS
from edgelm_converters.translation_pairs import make_pairs, pair_golden, source_ids

if TYPE_CHECKING:
    from edgelm_converters.seq2seq_reference import PairScores

__all__ = ["make_translation_model"]

Score = Callable[[Seq2SeqProgram], float]

_TARGET_TOKENIZER = "target_tokenizer.json"
_MOST_TRANSLATED = 300  # sentences of the validation data: BLEU to about a point, on which Keras takes a minute or two


def make_translation_model(
    request: Request, source: Source, reference: Reference, recognition: Recognition, folder: Path, progress: Progress
) -> Manifest:
    """Write the files of an encoder-decoder into a bundle's folder, each checked against Keras.

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
    if spec is None or spec.source is None:
        raise ConversionError(f"The model is not recognised as an encoder-decoder: {recognition.reason}.")
    _check(request, spec)
    tokens = _source_tokens(request, source, spec)
    target = None if request.target_tokenizer is None else find_tokens(request.target_tokenizer, source, spec)
    source_length, target_length, notes = choose_lengths(spec, request.sequence_length)
    tokens = tokens.bounded_by(source_length)
    target = None if target is None else target.bounded_by(target_length)
    written_with = tokens.tokenizer if target is None else target.tokenizer
    record = translation_record(
        spec, source, tokens.tokenizer, _saved(target, folder), written_with, lengths=(source_length, target_length)
    )
    model = TranslationModel(
        spec, request.recipe, record, tokens.tokenizer, None if target is None else target.tokenizer
    )
    progress("Reading the model", 1, 1)

    given = [None if file is None else read_dataset(Path(file)) for file in (request.calibration, request.validation)]
    from edgelm_converters.seq2seq_reference import keras_pair_scores

    scores = keras_pair_scores(source.model, spec)
    chosen: Sequence[Dataset | None] = [data for data in given if data is not None] or [None]
    sets = [
        make_pairs(scores, data, model, tick=lambda done, total: progress("Asking Keras", done, total))
        for data in chosen
    ]
    if tokens.tokenizer is not None:
        tokens.tokenizer.save(str(folder / "tokenizer.json"))
    keras, score = _bleu(request, model, scores, given[1], progress)
    judge = TranslationJudge(sets, request.chain.gate, sets[-1].perplexity, keras, score)
    targets: tuple[Format, ...] = request.targets or tuple(TRANSLATION_TARGETS)
    artifacts = make_translation_artifacts(model, targets, folder, judge, progress)
    write_golden(folder, pair_golden(sets[0], model))
    return Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        name=request.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task="translate" if record.audio is None else "transcribe",
        padding="masked" if spec.source.mask != "none" else "full",
        recipe=request.recipe.name,
        model=model_record(source, recognition),
        artifacts=artifacts,
        tokenizer=tokens.record(),
        labels=None,
        golden="golden.npz",
        files={},
        tool_versions=tool_versions(),
        notes=(*tokens.notes, *(() if target is None else target.notes), *notes),
        translation=record,
    )


def _check(request: Request, spec: TransformerSpec) -> None:
    """Refuse what is not for an encoder-decoder.

    Raises:
        InputError: Labels were given.
        RecipeError: The recipe is a static one, or has steps.
    """
    if request.labels is not None:
        raise InputError("Labels were given, but the model writes text: it has no classes.")
    if request.recipe.static:
        raise RecipeError(
            f"{request.recipe.name} has calibrated ranges, which edgelm has for encoders alone: take int8 or int4 for "
            f"'{spec.name}'."
        )
    if request.chain.steps:
        raise RecipeError(
            f"'{spec.name}' has an encoder and a decoder, and edgelm makes models of one stack smaller: leave --prune and "
            "--trim-vocabulary out."
        )


def _source_tokens(request: Request, source: Source, spec: TransformerSpec) -> Tokens:
    embeddings = None if spec.source is None else spec.source.embeddings
    return find_tokens(request.tokenizer, source, spec, rows=None if embeddings is None else len(embeddings.token))


def _saved(target: Tokens | None, folder: Path) -> TokenizerRecord | None:
    """Write the tokenizer of answers where it is another than the source's, and return the manifest's entry."""
    if target is None or target.tokenizer is None or target.max_length is None:
        return None
    target.tokenizer.save(str(folder / _TARGET_TOKENIZER))
    return TokenizerRecord(_TARGET_TOKENIZER, target.pad_id, target.max_length, target.vocabulary_size)


def _bleu(
    request: Request, model: TranslationModel, scores: PairScores, data: Dataset | None, progress: Progress
) -> tuple[float | None, Score | None]:
    """Return Keras's BLEU on the validation data, and what measures a program's; none of both where nobody asked for it."""
    gate, tokenizer = request.chain.gate, model.written_with
    if gate is None or gate.metric != "bleu":
        return None, None
    if data is None or data.labels is None or tokenizer is None:
        raise RecipeError(
            "--metric bleu needs sources and their translations: give them with --validation, in the columns source and target."
        )
    few = thin(data, _MOST_TRANSLATED)
    sources, wanted = source_ids(few, model), list(few.labels or ())
    limit = model.record.target_length
    answers = greedy_by_keras(
        scores,
        sources,
        model.record,
        limit=limit,
        tick=lambda done, total: progress("Translating in Keras", done, total),
    )

    def score(program: Seq2SeqProgram) -> float:
        return bleu(greedy_by_program(program, sources, model.record, limit=limit), wanted, tokenizer)

    return bleu(answers, wanted, tokenizer), score
