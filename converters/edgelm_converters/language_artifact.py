"""A language model becomes the files of a bundle: TFLite with its caches, LiteRT-LM's container, ONNX with GenAI's settings."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm_runtimes.program import CausalProgram, ProgramOptions
from edgelm_runtimes.registry import open_causal

from edgelm.bundle import Artifact, Parity, Perplexity, RuntimeRecord, Signature
from edgelm.bundle.manifest import Format
from edgelm.errors import ConversionError, ExecutionError, RecipeError, RuntimeUnavailableError
from edgelm_converters.causal_parity import Sequences, compare_scores, divergence, enforce_scores
from edgelm_converters.gate import Gate, Trial, climb, rank
from edgelm_converters.language import LanguageModel
from edgelm_converters.language_file import write_file
from edgelm_converters.parity import judged_by_task
from edgelm_converters.recipes import Recipe
from edgelm_converters.request import Progress
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.written import Written

__all__ = ["LANGUAGE_TARGETS", "Judge", "make_language_artifacts"]

# format -> the runtime that verifies it; LiteRT-LM's container holds the TFLite file that was verified before.
LANGUAGE_TARGETS: dict[Format, str] = {"tflite": "litert", "onnx": "onnx", "litertlm": "litert"}

_RANKING_SEQUENCES = (
    4  # a part's divergence is a mean over their tokens: it is compared with the others', on the same ones
)


@dataclass(frozen=True)
class Judge:
    """What the files of a language model are held against.

    Attributes:
        sets: To compare on; the last one with real text gives the perplexity.
        gate: What must be kept; None leaves the recipe's own bounds.
        perplexity: Of the Keras model as it was given, on the last set; None where that is no text.
        prepare: Fits a model's weights to a recipe.
        evened: Does the same but for rounding: of a model in which each part is tried alone.
    """

    sets: Sequence[Sequences]
    gate: Gate | None
    perplexity: float | None
    prepare: Callable[[TransformerSpec], TransformerSpec]
    evened: Callable[[TransformerSpec], TransformerSpec]


def make_language_artifacts(
    model: LanguageModel, targets: Sequence[Format], folder: Path, judge: Judge, progress: Progress
) -> tuple[Artifact, ...]:
    """Write the files that are asked for, run each in its runtime, and hold it against Keras and the gate.

    Args:
        model: The model, as it was read.
        targets: Of `LANGUAGE_TARGETS`; ``litertlm`` needs a tokenizer.
        folder: Where to.
        judge: What they are held against.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        ConversionError: A file does not open or run in its runtime, or ``litertlm`` has no tokenizer.
        ParityError: It leaves the recipe's bounds, or nothing passes the gate.
    """
    made: dict[Format, Artifact] = {}
    specs: dict[Format, TransformerSpec] = {}
    for target in LANGUAGE_TARGETS:
        if target not in targets:
            continue
        known = specs.get("tflite") if target == "litertlm" else None
        if known is not None and judge.gate is not None:
            # The same file in a container: what passed as TFLite passes in it.
            artifact = _written(target, dataclasses.replace(model, spec=judge.prepare(known)), folder, judge, progress)
            made[target] = dataclasses.replace(artifact, gate=made["tflite"].gate)
        else:
            made[target], specs[target] = _judged(target, model, folder, judge, progress)
    return tuple(made[target] for target in LANGUAGE_TARGETS if target in made)


def _judged(
    target: Format, model: LanguageModel, folder: Path, judge: Judge, progress: Progress
) -> tuple[Artifact, TransformerSpec]:
    """Return a file that passes, and the model with the widths that made it pass."""
    gate = judge.gate
    found: list[tuple[Artifact, TransformerSpec]] = []

    def attempt(tried: TransformerSpec | None) -> Trial:
        spec = model.spec if tried is None else tried
        prepared = dataclasses.replace(model, spec=judge.prepare(spec))
        artifact = _written(target, prepared, folder, judge, progress)
        found[:] = [(artifact, spec)]
        return Trial(0.0 if gate is None else _value(gate, artifact), artifact.size_bytes)

    if gate is None:
        attempt(None)
        return found[0]
    data = judge.sets[-1]
    record = climb(
        model.spec, model.recipe, gate, keras=judge.perplexity or 0.0, data=data.source, samples=data.predicted,
        attempt=attempt, ranking=lambda: _ranking(target, model, judge, progress),
    )  # fmt: skip
    artifact, spec = found[0]
    return dataclasses.replace(artifact, gate=record), spec


def _value(gate: Gate, artifact: Artifact) -> float:
    """Return an artifact's metric.

    Raises:
        RecipeError: The metric is not for language models, or there is no text to measure it on.
    """
    if gate.metric == "parity":
        return artifact.parity.max_abs_error / max(artifact.parity.reference_range, 1e-6)
    if gate.metric != "perplexity":
        raise RecipeError(
            f"--metric {gate.metric} is not of a model that continues text: take perplexity or parity for this one."
        )
    if artifact.perplexity is None:
        raise RecipeError("--metric perplexity needs text: give it with --validation.")
    return artifact.perplexity.artifact


def _ranking(target: Format, model: LanguageModel, judge: Judge, progress: Progress) -> dict[str, float]:
    """Return the divergence from Keras's next tokens, in nats, where one part alone is compressed."""
    inside: Format = "tflite" if target == "litertlm" else target
    data = judge.sets[-1]
    few = dataclasses.replace(data, ids=data.ids[:_RANKING_SEQUENCES], scores=data.scores[:_RANKING_SEQUENCES])
    longest = max(len(ids) for ids in few.ids)
    context = min(max(longest, 16), model.generation.context_length)
    small = dataclasses.replace(
        model, caches=(context,), generation=dataclasses.replace(model.generation, context_length=context)
    )
    evened = judge.evened(model.spec)
    with tempfile.TemporaryDirectory(prefix="edgelm-") as folder:

        def error(tried: TransformerSpec) -> float:
            here = Path(tempfile.mkdtemp(dir=folder))
            written = write_file(inside, dataclasses.replace(small, spec=tried, tokenizer=None), here)
            program = _open(target, written.opened, written.signatures)
            try:
                return divergence(program, few)
            finally:
                program.close()
                for file in here.iterdir():
                    file.unlink()  # dozens of a large model's files would fill a disk

        return rank(evened, error, tick=lambda done, total: progress(f"Ranking the parts in {target}", done, total))


def _written(target: Format, model: LanguageModel, folder: Path, judge: Judge, progress: Progress) -> Artifact:
    """Write a model whose weights are prepared, run it in its runtime, and describe what came out."""
    progress(f"Writing {target}", 0, 1)
    written = write_file(target, model, folder)
    progress(f"Writing {target}", 1, 1)
    try:
        # A container's TFLite file was checked with the others where there is one: one set shows that it is whole.
        sets = judge.sets[:1] if target == "litertlm" and judge.gate is None else judge.sets
        results, version = _compared(target, written, model.recipe, sets, progress)
    finally:
        if written.opened != written.path:
            written.opened.unlink(missing_ok=True)
    if judge.gate is None:
        for parity, perplexity in results:
            enforce_scores(parity, perplexity, model.recipe, LANGUAGE_TARGETS[target])
    return Artifact(
        format=target,
        file=written.path.name,
        data_files=written.data_files,
        size_bytes=written.size_bytes,
        signatures=written.signatures,
        runtimes=_runtimes(target, model, version),
        parity=judged_by_task(results[0][0]),
        accuracy=None,
        operators=written.operators,
        notes=written.notes,
        perplexity=_as_given(results, judge),
    )


def _compared(
    target: Format, written: Written, recipe: Recipe, sets: Sequence[Sequences], progress: Progress
) -> tuple[list[tuple[Parity, Perplexity | None]], str]:
    program = _open(target, written.opened, written.signatures)
    try:
        results = [
            compare_scores(
                program, sequences, recipe,
                tick=lambda done, total: progress(f"Checking {target} against Keras", done, total),
            )
            for sequences in sets
        ]  # fmt: skip
        return results, program.facts.runtime_version
    except ExecutionError as error:
        raise ConversionError(
            f"The {target} file opens in {LANGUAGE_TARGETS[target]}, but does not run: {error}"
        ) from error
    finally:
        program.close()


def _open(target: Format, path: Path, signatures: tuple[Signature, ...]) -> CausalProgram:
    runtime = LANGUAGE_TARGETS[target]
    try:
        return open_causal(runtime, path, signatures, ProgramOptions())
    except RuntimeUnavailableError as error:
        raise ConversionError(f"The {target} file was written, but {runtime} does not open it: {error}") from error


def _as_given(results: Sequence[tuple[Parity, Perplexity | None]], judge: Judge) -> Perplexity | None:
    """Return the perplexity on the last text, beside that of the Keras model as it was given."""
    found = next((perplexity for _, perplexity in reversed(results) if perplexity is not None), None)
    if found is None or judge.perplexity is None or len(results) < len(judge.sets):
        return found
    return dataclasses.replace(found, keras=judge.perplexity)


def _runtimes(target: Format, model: LanguageModel, version: str) -> tuple[RuntimeRecord, ...]:
    if target == "litertlm":
        reason = f"the TFLite file inside was verified in litert {version}"
        return (RuntimeRecord("litert-lm", "untested", None, reason),)
    verified = RuntimeRecord(LANGUAGE_TARGETS[target], "verified", version)
    if target == "tflite" or model.tokenizer is None:
        return (verified,)
    return verified, RuntimeRecord("onnxruntime-genai", "untested", None, "the file itself was verified in onnx")
