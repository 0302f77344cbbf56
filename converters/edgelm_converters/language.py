"""A language model becomes the files of a bundle: TFLite with its caches, LiteRT-LM's container, ONNX with GenAI's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_causal
from numpy.typing import NDArray

from edgelm.bundle import Artifact, GenerationRecord, GoldenCase, Parity, Perplexity, RuntimeRecord, Signature
from edgelm.bundle.manifest import Format
from edgelm.errors import ConversionError, ExecutionError, InputError, RuntimeUnavailableError
from edgelm_converters.causal_parity import Sequences, compare_scores, surprise
from edgelm_converters.causal_reference import Scores
from edgelm_converters.data import Dataset
from edgelm_converters.recipes import Recipe
from edgelm_converters.request import Progress
from edgelm_converters.spec import TransformerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "LANGUAGE_TARGETS",
    "LanguageModel",
    "choose_context",
    "golden_cases",
    "make_language_artifacts",
    "make_sequences",
]

# format -> the runtime that verifies it; LiteRT-LM's container holds the TFLite file that was verified before.
LANGUAGE_TARGETS: dict[Format, str] = {"tflite": "litert", "onnx": "onnx", "litertlm": "litert"}

_DEFAULT_CONTEXT = 1024
_LONGEST_SEQUENCE = 320  # past the shortest of several caches
_MOST_SEQUENCES = (
    16  # 5,000 tokens: a perplexity to half a percent or so, and a minute of Keras for 135 million weights
)
_SCORE_BYTES = 150 * 2**20  # of Keras's scores, kept to be compared one by one
_RANDOM_LENGTHS = (1, 2, 9, 33, 70)
_SEED = 20
_GOLDEN_CASES = 4
_GOLDEN_TOKENS = 64


@dataclass(frozen=True)
class LanguageModel:
    """All that is needed to write a language model's files.

    Attributes:
        spec: The model.
        recipe: How its weights are stored.
        generation: How it is driven.
        tokenizer: None where the artifacts take ids.
        chat_template: The Jinja text; None where there is none.
        caches: Lengths of the caches in a TFLite file, ascending; the last is the context. None chooses.
        prefill: Tokens of a TFLite file's prefill signatures. None chooses.
    """

    spec: TransformerSpec
    recipe: Recipe
    generation: GenerationRecord
    tokenizer: Tokenizer | None
    chat_template: str | None
    caches: tuple[int, ...] | None = None
    prefill: tuple[int, ...] | None = None


def choose_context(spec: TransformerSpec, asked: int | None, carried: int | None) -> tuple[int, tuple[str, ...]]:
    """Return the context length, and a note where it was chosen for the user.

    Args:
        spec: The model.
        asked: What the user wants.
        carried: What the model's preprocessor says.

    Raises:
        InputError: The model has fewer positions than that.
    """
    bound = spec.max_length
    if asked is not None:
        if bound is not None and asked > bound:
            raise InputError(f"--sequence-length {asked} is more positions than the model has: {bound}.")
        if asked < 2:
            raise InputError(f"--sequence-length {asked} leaves no room for an answer: give at least 2.")
        return asked, ()
    chosen = min(length for length in (bound, carried or _DEFAULT_CONTEXT) if length is not None)
    return chosen, (f"Prompt and answer have {chosen} positions together; --sequence-length sets another context.",)


def make_sequences(
    scores: Scores,
    dataset: Dataset | None,
    model: LanguageModel,
    *,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Sequences:
    """Return sequences to compare on, with Keras's scores: of the user's texts, or random valid ids.

    Texts are encoded one by one, and cut into pieces of at most 320 tokens; the first 16 pieces are used.

    Raises:
        InputError: The data hold no texts, or give no sequence of two tokens.
    """
    longest = min(_LONGEST_SEQUENCE, model.generation.context_length)
    ids = (
        _random_ids(model.spec.vocabulary_size, longest)
        if dataset is None
        else _text_ids(dataset, model.tokenizer, longest)
    )
    kept: list[NDArray[np.float32]] = []
    surprises = []
    for done, sequence in enumerate(ids, 1):
        found = scores(sequence)
        surprises.append(surprise(sequence, found))
        if len(kept) == done - 1 and (not kept or sum(rows.nbytes for rows in (*kept, found)) <= _SCORE_BYTES):
            kept.append(found)
        tick(done, len(ids))
    source = "random ids" if dataset is None else dataset.name
    return Sequences(source, "random" if dataset is None else "real", tuple(ids), tuple(kept), tuple(surprises))


def _random_ids(vocabulary: int, longest: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(_SEED)
    lengths = sorted({min(length, longest) for length in (*_RANDOM_LENGTHS, longest)})
    # Id 0 stays out: a Keras model with mask_zero takes it for padding, in the middle of a text too.
    return [generator.integers(min(1, vocabulary - 1), vocabulary, length).astype(np.int32) for length in lengths]


def _text_ids(dataset: Dataset, tokenizer: Tokenizer | None, longest: int) -> list[NDArray[np.int32]]:
    if dataset.texts is None:
        raise InputError(f"{dataset.name} holds arrays; a language model is checked on texts (txt, csv, tsv, jsonl).")
    if tokenizer is None:
        raise InputError(
            f"{dataset.name} holds texts, and there is no tokenizer to turn them into ids: give one with --tokenizer."
        )
    pieces: list[NDArray[np.int32]] = []
    for text in dataset.texts:
        ids = np.asarray(tokenizer.encode(text).ids, np.int32)
        cut = [ids[start : start + longest] for start in range(0, len(ids), longest)]
        pieces += [piece for piece in cut if len(piece) >= 2]
        if len(pieces) >= _MOST_SEQUENCES:
            break
    if not pieces:
        raise InputError(f"{dataset.name} gives no sequence of two tokens: there is nothing to predict in it.")
    return pieces[:_MOST_SEQUENCES]


def make_language_artifacts(
    model: LanguageModel, targets: Sequence[Format], folder: Path, sets: Sequence[Sequences], progress: Progress
) -> tuple[Artifact, ...]:
    """Write the files that are asked for, run each in its runtime, and hold it against Keras.

    Args:
        model: The model.
        targets: Of `LANGUAGE_TARGETS`; ``litertlm`` needs a tokenizer.
        folder: Where to.
        sets: To compare on; the last one with real text gives the perplexity.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        ConversionError: A file does not open or run in its runtime, or ``litertlm`` has no tokenizer.
        ParityError: It does not give Keras's scores.
    """
    made: dict[Format, Artifact] = {}
    for target in targets:
        make = {"tflite": _make_tflite, "onnx": _make_onnx, "litertlm": _make_litertlm}[target]
        made[target] = make(model, folder, sets, progress)
    return tuple(made[target] for target in LANGUAGE_TARGETS if target in made)


def _make_tflite(model: LanguageModel, folder: Path, sets: Sequence[Sequences], progress: Progress) -> Artifact:
    from edgelm_converters.emit.tflite_decoder import default_caches, default_verify

    context = model.generation.context_length
    caches = model.caches or default_caches(context)
    return _write_tflite(model, folder / "model.tflite", caches, default_verify(context), sets, progress)


def _make_litertlm(model: LanguageModel, folder: Path, sets: Sequence[Sequences], progress: Progress) -> Artifact:
    """Write LiteRT-LM's container, around a TFLite file that has nothing but the signatures which LiteRT-LM calls.

    With the others, the shorter caches and the scores of several tokens, it took 9 MB more memory (15 million weights, int8).
    """
    from edgelm_converters.emit.litertlm import write_litertlm

    if model.tokenizer is None:
        raise ConversionError(
            "A .litertlm file holds its tokenizer, and this model has none: give one with --tokenizer, or convert with "
            "--to tflite --to onnx."
        )
    path, inside = folder / "model.litertlm", folder / "litertlm.tflite"
    try:
        made = _write_tflite(model, inside, (model.generation.context_length,), (), sets[:1], progress)
        write_litertlm(
            path,
            tflite=inside,
            tokenizer=folder / "tokenizer.json",
            generation=model.generation,
            chat_template=model.chat_template,
        )
    finally:
        inside.unlink(missing_ok=True)
    reason = f"the TFLite file inside was verified in litert {made.runtimes[0].version}"
    return dataclasses.replace(
        made,
        format="litertlm",
        file=path.name,
        size_bytes=path.stat().st_size,
        runtimes=(RuntimeRecord("litert-lm", "untested", None, reason),),
    )


def _write_tflite(
    model: LanguageModel,
    path: Path,
    caches: tuple[int, ...],
    verify: tuple[int, ...],
    sets: Sequence[Sequences],
    progress: Progress,
) -> Artifact:
    from edgelm_converters.emit.tflite import operator_histogram
    from edgelm_converters.emit.tflite_decoder import decoder_notes, default_prefill, emit_tflite_decoder

    target: Format = "tflite" if path.stem == "model" else "litertlm"
    progress(f"Writing {target}", 0, 1)
    signatures = emit_tflite_decoder(
        model.spec,
        path,
        recipe=model.recipe.name,
        caches=caches,
        prefill=model.prefill or default_prefill(model.generation.context_length),
        verify=verify,
    )
    progress(f"Writing {target}", 1, 1)
    artifact = _verified(target, path, signatures, operator_histogram(path), model, sets, progress)
    return dataclasses.replace(artifact, notes=decoder_notes(model.spec, model.recipe.name))


def _make_onnx(model: LanguageModel, folder: Path, sets: Sequence[Sequences], progress: Progress) -> Artifact:
    from edgelm_converters.emit.genai import write_genai
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.onnx_file import operator_histogram
    from edgelm_converters.emit.tflite_decoder import decoder_notes

    context = model.generation.context_length
    path = folder / "model.onnx"
    progress("Writing onnx", 0, 1)
    signatures = emit_onnx_decoder(model.spec, path, recipe=model.recipe.name, context_length=context)
    notes = decoder_notes(model.spec, model.recipe.name)  # a prepared model has the same widths in both formats
    if model.tokenizer is not None:
        notes += write_genai(folder, model.spec, model.generation, context_length=context)
    progress("Writing onnx", 1, 1)
    artifact = _verified("onnx", path, signatures, operator_histogram(path), model, sets, progress)
    if model.tokenizer is None:
        return dataclasses.replace(artifact, notes=notes)
    genai = RuntimeRecord("onnxruntime-genai", "untested", None, "the file itself was verified in onnx")
    return dataclasses.replace(artifact, runtimes=(*artifact.runtimes, genai), notes=notes)


def _verified(
    target: Format,
    path: Path,
    signatures: tuple[Signature, ...],
    operators: dict[str, int],
    model: LanguageModel,
    sets: Sequence[Sequences],
    progress: Progress,
) -> Artifact:
    """Run one file in its runtime, hold it against Keras, and describe it."""
    runtime = LANGUAGE_TARGETS[target]
    try:
        program = open_causal(runtime, path, signatures, ProgramOptions())
    except RuntimeUnavailableError as error:
        raise ConversionError(f"The {target} file was written, but {runtime} does not open it: {error}") from error
    results: list[tuple[Parity, Perplexity | None]] = []
    try:
        for sequences in sets:
            results.append(
                compare_scores(
                    program, sequences, model.recipe,
                    tick=lambda done, total: progress(f"Checking {target} against Keras", done, total),
                )
            )  # fmt: skip
        version = program.facts.runtime_version
    except ExecutionError as error:
        raise ConversionError(f"The {target} file opens in {runtime}, but does not run: {error}") from error
    finally:
        program.close()
    data_files = tuple(sorted(file.name for file in path.parent.glob(f"{path.name}.*")))
    return Artifact(
        format=target,
        file=path.name,
        data_files=data_files,
        size_bytes=sum((path.parent / name).stat().st_size for name in (path.name, *data_files)),
        signatures=signatures,
        runtimes=(RuntimeRecord(runtime, "verified", version),),
        parity=results[0][0],
        accuracy=None,
        operators=operators,
        perplexity=next((perplexity for _, perplexity in reversed(results) if perplexity is not None), None),
    )


def golden_cases(sequences: Sequences, tokenizer: Tokenizer | None) -> list[GoldenCase]:
    """Choose a few sequences, short to long, with Keras's scores after their last token: a device checks itself with them."""
    order = sorted(range(len(sequences.scores)), key=lambda index: len(sequences.ids[index]))
    picked = sorted({order[int(place)] for place in np.linspace(0, len(order) - 1, _GOLDEN_CASES)})
    cases = []
    for index in picked:
        count = min(len(sequences.ids[index]), _GOLDEN_TOKENS)
        ids, scores = sequences.ids[index][:count], sequences.scores[index][count - 1]
        text, encoded = _text_of(ids, tokenizer)
        cases.append(
            GoldenCase(text, encoded, {"token_ids": ids[None].astype(np.int32)}, {"logits": scores[None, None]})
        )
    return cases


def _text_of(ids: NDArray[np.int32], tokenizer: Tokenizer | None) -> tuple[str | None, list[int] | None]:
    """Return a text, and the ids that the tokenizer gives for it here: those that it has to give on the device."""
    if tokenizer is None:
        return None, None
    text = tokenizer.decode(ids.tolist())
    if not text.strip():
        return None, None
    encoded = tokenizer.encode(text).ids
    return (text, encoded) if encoded else (None, None)
