"""An encoder-decoder becomes the files of a bundle, each run in its runtime and held against Keras and against the gate."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_seq2seq
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram

from edgelm.bundle import Artifact, Parity, Perplexity, RuntimeRecord, Signature
from edgelm.bundle.manifest import Format
from edgelm.errors import ConversionError, ExecutionError, RecipeError, RuntimeUnavailableError
from edgelm_converters.causal_parity import enforce_scores
from edgelm_converters.gate import Gate, Trial, climb, rank
from edgelm_converters.pair_parity import Pairs, compare_pairs, pair_divergence
from edgelm_converters.parity import judged_by_task
from edgelm_converters.request import Progress
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.translation import TranslationModel
from edgelm_converters.translation_file import TRANSLATION_TARGETS, write_translation_file
from edgelm_converters.written import Written

__all__ = ["TranslationJudge", "make_translation_artifacts"]

_RANKING_PAIRS = (
    16  # a part's divergence is a mean over their tokens: it is compared with the others', on the same ones
)


@dataclass(frozen=True)
class TranslationJudge:
    """What the files of an encoder-decoder are held against.

    Attributes:
        sets: To compare on; the last one with real pairs gives the perplexity.
        gate: What must be kept; None leaves the recipe's own bounds.
        perplexity: Of the Keras model as it was given, on the last set; None where that has no real answers.
        bleu: Of the Keras model as it was given; None where it was not asked for.
        score: Translates the validation data with a program, and returns BLEU; None where it was not asked for.
    """

    sets: Sequence[Pairs]
    gate: Gate | None
    perplexity: float | None
    bleu: float | None
    score: Callable[[Seq2SeqProgram], float] | None


def make_translation_artifacts(
    model: TranslationModel, targets: Sequence[Format], folder: Path, judge: TranslationJudge, progress: Progress
) -> tuple[Artifact, ...]:
    """Write the files that are asked for, run each in its runtime, and hold it against Keras and the gate.

    Args:
        model: The model.
        targets: Of `TRANSLATION_TARGETS`.
        folder: Where to.
        judge: What they are held against.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        ConversionError: A file does not open or run in its runtime.
        ParityError: It leaves the recipe's bounds, or nothing passes the gate.
    """
    return tuple(_judged(target, model, folder, judge, progress) for target in targets)


def _judged(
    target: Format, model: TranslationModel, folder: Path, judge: TranslationJudge, progress: Progress
) -> Artifact:
    gate = judge.gate
    found: list[Artifact] = []

    def attempt(tried: TransformerSpec | None) -> Trial:
        spec = model.spec if tried is None else tried
        artifact, bleu = _written(target, dataclasses.replace(model, spec=spec), folder, judge, progress)
        found[:] = [artifact]
        return Trial(0.0 if gate is None else _value(gate, artifact, bleu), artifact.size_bytes)

    if gate is None:
        attempt(None)
        return found[0]
    data = judge.sets[-1]
    keras = judge.bleu if gate.metric == "bleu" else judge.perplexity
    record = climb(
        model.spec, model.recipe, gate, keras=keras or 0.0, data=data.source, samples=data.predicted,
        attempt=attempt, ranking=lambda: _ranking(target, model, judge, progress),
    )  # fmt: skip
    return dataclasses.replace(found[0], gate=record)


def _value(gate: Gate, artifact: Artifact, bleu: float | None) -> float:
    """Return an artifact's metric.

    Raises:
        RecipeError: The metric is not for encoder-decoders, or there are no pairs to measure it on.
    """
    if gate.metric == "parity":
        return artifact.parity.max_abs_error / max(artifact.parity.reference_range, 1e-6)
    if gate.metric == "accuracy":
        raise RecipeError("--metric accuracy is not of a model that writes text: take bleu, perplexity or parity.")
    value = bleu if gate.metric == "bleu" else (None if artifact.perplexity is None else artifact.perplexity.artifact)
    if value is None:
        raise RecipeError(
            f"--metric {gate.metric} needs sources and their translations: give them with --validation, in the columns "
            "source and target."
        )
    return value


def _ranking(target: Format, model: TranslationModel, judge: TranslationJudge, progress: Progress) -> dict[str, float]:
    """Return the divergence from Keras's next tokens, in nats, where one part alone is compressed."""
    data = judge.sets[-1]
    few = dataclasses.replace(
        data,
        sources=data.sources[:_RANKING_PAIRS],
        targets=data.targets[:_RANKING_PAIRS],
        scores=data.scores[:_RANKING_PAIRS],
    )
    with tempfile.TemporaryDirectory(prefix="edgelm-") as folder:

        def error(tried: TransformerSpec) -> float:
            here = Path(tempfile.mkdtemp(dir=folder))
            written = write_translation_file(target, dataclasses.replace(model, spec=tried), here)
            program = _open(target, written.opened, written.signatures)
            try:
                return pair_divergence(program, few)
            finally:
                program.close()
                for file in here.iterdir():
                    file.unlink()

        return rank(model.spec, error, tick=lambda done, total: progress(f"Ranking the parts in {target}", done, total))


def _written(
    target: Format, model: TranslationModel, folder: Path, judge: TranslationJudge, progress: Progress
) -> tuple[Artifact, float | None]:
    """Write a model, run it in its runtime, and describe what came out; with its BLEU where that is asked for."""
    progress(f"Writing {target}", 0, 1)
    written = write_translation_file(target, model, folder)
    progress(f"Writing {target}", 1, 1)
    results, bleu, version = _compared(target, written, model, judge, progress)
    if judge.gate is None:
        for parity, perplexity in results:
            enforce_scores(parity, perplexity, model.recipe, TRANSLATION_TARGETS[target])
    artifact = Artifact(
        format=target,
        file=written.path.name,
        data_files=written.data_files,
        size_bytes=written.size_bytes,
        signatures=written.signatures,
        runtimes=(RuntimeRecord(TRANSLATION_TARGETS[target], "verified", version),),
        parity=judged_by_task(results[0][0]),
        accuracy=None,
        operators=written.operators,
        notes=written.notes,
        perplexity=next((perplexity for _, perplexity in reversed(results) if perplexity is not None), None),
    )
    return artifact, bleu


def _compared(
    target: Format, written: Written, model: TranslationModel, judge: TranslationJudge, progress: Progress
) -> tuple[list[tuple[Parity, Perplexity | None]], float | None, str]:
    program = _open(target, written.opened, written.signatures)
    try:
        results = [
            compare_pairs(
                program, pairs, model.recipe,
                tick=lambda done, total: progress(f"Checking {target} against Keras", done, total),
            )
            for pairs in judge.sets
        ]  # fmt: skip
        bleu = None if judge.score is None else judge.score(program)
        return results, bleu, program.facts.runtime_version
    except ExecutionError as error:
        raise ConversionError(
            f"The {target} file opens in {TRANSLATION_TARGETS[target]}, but does not run: {error}"
        ) from error
    finally:
        program.close()


def _open(target: Format, path: Path, signatures: tuple[Signature, ...]) -> Seq2SeqProgram:
    runtime = TRANSLATION_TARGETS[target]
    try:
        return open_seq2seq(runtime, path, signatures, ProgramOptions())
    except RuntimeUnavailableError as error:
        raise ConversionError(f"The {target} file was written, but {runtime} does not open it: {error}") from error
