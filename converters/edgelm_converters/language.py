"""A language model becomes the files of a bundle: TFLite with its caches, LiteRT-LM's container, ONNX with GenAI's settings."""

from __future__ import annotations

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
from edgelm_converters.causal_parity import Sequences, compare_scores
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
# Keras scores a sequence at once: 512 tokens of a vocabulary of 50,000 are 100 MB.
_LONGEST_SEQUENCE = 320
_MOST_SEQUENCES = 32
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

    Texts are encoded one by one, and cut into pieces of at most 320 tokens; the first 32 pieces are used.

    Raises:
        InputError: The data hold no texts, or give no sequence of two tokens.
    """
    longest = min(_LONGEST_SEQUENCE, model.generation.context_length)
    ids = (
        _random_ids(model.spec.vocabulary_size, longest)
        if dataset is None
        else _text_ids(dataset, model.tokenizer, longest)
    )
    found = []
    for done, sequence in enumerate(ids, 1):
        found.append(scores(sequence))
        tick(done, len(ids))
    source = "random ids" if dataset is None else dataset.name
    return Sequences(source, "random" if dataset is None else "real", tuple(ids), tuple(found))


def _random_ids(vocabulary: int, longest: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(_SEED)
    lengths = sorted({min(length, longest) for length in (*_RANDOM_LENGTHS, longest)})
    return [generator.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


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
        if target == "onnx":
            made[target] = _make_onnx(model, folder, sets, progress)
        elif "tflite" not in made:  # LiteRT-LM's container is made of it
            made["tflite"] = _make_tflite(model, folder, sets, progress)
    if "litertlm" in targets:
        made["litertlm"] = _make_litertlm(model, folder, made["tflite"], progress)
        if "tflite" not in targets:
            (folder / made.pop("tflite").file).unlink()
    return tuple(made[target] for target in LANGUAGE_TARGETS if target in made)


def _make_tflite(model: LanguageModel, folder: Path, sets: Sequence[Sequences], progress: Progress) -> Artifact:
    from edgelm_converters.emit.tflite import operator_histogram
    from edgelm_converters.emit.tflite_decoder import (
        default_caches,
        default_prefill,
        default_verify,
        emit_tflite_decoder,
    )

    context = model.generation.context_length
    caches = model.caches or default_caches(context)
    prefill = model.prefill or default_prefill(context)
    path = folder / "model.tflite"
    progress("Writing tflite", 0, 1)
    signatures = emit_tflite_decoder(
        model.spec, path, recipe=model.recipe.name, caches=caches, prefill=prefill,
        verify=default_verify(context),
    )  # fmt: skip
    progress("Writing tflite", 1, 1)
    return _verified("tflite", path, signatures, operator_histogram(path), model, sets, progress)


def _make_onnx(model: LanguageModel, folder: Path, sets: Sequence[Sequences], progress: Progress) -> Artifact:
    from edgelm_converters.emit.genai import write_genai
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.onnx_file import operator_histogram

    context = model.generation.context_length
    path = folder / "model.onnx"
    progress("Writing onnx", 0, 1)
    signatures = emit_onnx_decoder(model.spec, path, recipe=model.recipe.name, context_length=context)
    if model.tokenizer is not None:
        write_genai(folder, model.spec, model.generation, context_length=context)
    progress("Writing onnx", 1, 1)
    return _verified("onnx", path, signatures, operator_histogram(path), model, sets, progress)


def _make_litertlm(model: LanguageModel, folder: Path, tflite: Artifact, progress: Progress) -> Artifact:
    """Wrap the TFLite file, whose numbers were just verified."""
    from edgelm_converters.emit.litertlm import write_litertlm

    tokenizer = folder / "tokenizer.json"
    if model.tokenizer is None:
        raise ConversionError(
            "A .litertlm file holds its tokenizer, and this model has none: give one with --tokenizer, or convert with "
            "--to tflite --to onnx."
        )
    path = folder / "model.litertlm"
    progress("Writing litertlm", 0, 1)
    write_litertlm(
        path,
        tflite=folder / tflite.file,
        tokenizer=tokenizer,
        generation=model.generation,
        chat_template=model.chat_template,
    )
    progress("Writing litertlm", 1, 1)
    own = tuple(signature for signature in tflite.signatures if signature.name.split("_")[0] in ("prefill", "decode"))
    return Artifact(
        format="litertlm",
        file=path.name,
        data_files=(),
        size_bytes=path.stat().st_size,
        signatures=own,
        runtimes=(RuntimeRecord("litert-lm", "untested", None, "the TFLite file inside was verified in litert"),),
        parity=tflite.parity,
        accuracy=None,
        operators=tflite.operators,
        perplexity=tflite.perplexity,
    )


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
    others = {"onnx": "onnxruntime-genai"}
    runtimes = [RuntimeRecord(runtime, "verified", version)]
    if target in others and model.tokenizer is not None:
        runtimes.append(RuntimeRecord(others[target], "untested", None, "the file itself was verified in onnx"))
    return Artifact(
        format=target,
        file=path.name,
        data_files=data_files,
        size_bytes=sum((path.parent / name).stat().st_size for name in (path.name, *data_files)),
        signatures=signatures,
        runtimes=tuple(runtimes),
        parity=results[0][0],
        accuracy=None,
        operators=operators,
        perplexity=next((perplexity for _, perplexity in reversed(results) if perplexity is not None), None),
    )


def golden_cases(sequences: Sequences, tokenizer: Tokenizer | None) -> list[GoldenCase]:
    """Choose a few sequences, short to long, with Keras's scores after their last token: a device checks itself with them."""
    order = sorted(range(len(sequences.ids)), key=lambda index: len(sequences.ids[index]))
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
