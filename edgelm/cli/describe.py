"""Manifests for people: rows of text, made without printing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgelm.bundle import (
    Accuracy,
    Artifact,
    CalibrationRecord,
    CompressionStep,
    GateRecord,
    GenerationRecord,
    Manifest,
    Parity,
    Perplexity,
    RuntimeRecord,
    TranslationRecord,
)
from edgelm.cli.output import size

if TYPE_CHECKING:
    from edgelm_runtimes import RuntimeCheck, VerifyReport

__all__ = ["artifact_rows", "compression_line", "gate_line", "manifest_rows", "summary_row", "verify_rows"]

Rows = list[tuple[str, ...]]


def manifest_rows(manifest: Manifest) -> Rows:
    """Return what a bundle is and how it was made."""
    model, tokenizer = manifest.model, manifest.tokenizer
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tool_versions.items())
    return [
        ("name", manifest.name),
        ("task", manifest.task + (f", {len(manifest.labels)} labels" if manifest.labels else "")),
        ("model", f"{model.source} ({model.name}), {model.parameters:,} parameters"),
        ("read as", f"{model.family}, recognised" if model.family else f"traced: {model.reason}"),
        *(("", f"{key.replace('_', ' ')}: {value}") for key, value in model.architecture.items()),
        *(("made smaller", compression_line(step)) for step in manifest.compression),
        *(("", note) for step in manifest.compression for note in step.notes),
        ("recipe", manifest.recipe),
        *([("fitted on", _calibration(manifest.calibration))] if manifest.calibration else []),
        *_settings_rows(manifest),
        (
            "tokenizer",
            f"{tokenizer.vocabulary_size:,} ids, at most {tokenizer.max_length} a text"
            if tokenizer
            else "none: the model takes ids or arrays",
        ),
        ("made", f"{manifest.created} with {tools}"),
        *(("note", note) for note in manifest.notes),
    ]


def _settings_rows(manifest: Manifest) -> Rows:
    """Return how a model is driven."""
    if manifest.generation is not None:
        return _generation_rows(manifest.generation)
    if manifest.translation is not None:
        return _translation_rows(manifest.translation)
    return [("padding", manifest.padding)]


def _translation_rows(record: TranslationRecord) -> Rows:
    """Return how an encoder-decoder is driven."""
    what = "tokens" if record.audio is None else "frames"
    begin, stop = (", ".join(map(str, ids)) or "none" for ids in (record.target_prefix, record.stop_ids))
    return [
        ("source", f"{record.source_length:,} {what} at most"),
        ("answer", f"{record.target_length:,} positions; begins with the tokens {begin}, stops at {stop}"),
    ]


def _generation_rows(generation: GenerationRecord) -> Rows:
    """Return how a language model is driven."""
    stop = ", ".join(map(str, generation.stop_ids)) or "none"
    return [
        ("context", f"{generation.context_length:,} positions; stops at the tokens {stop}"),
        ("chat", f"by {generation.chat_template}" if generation.chat_template else "no template: prompts only"),
    ]


def artifact_rows(artifact: Artifact) -> Rows:
    """Return what one model file is, and what was seen of it."""
    signatures = ", ".join(signature.name for signature in artifact.signatures)
    operators = sorted(artifact.operators.items(), key=lambda item: -item[1])
    return [
        (artifact.file, f"{size(artifact.size_bytes)}, signatures {signatures}"),
        ("against Keras", _parity(artifact.parity, "token" if _is_language(artifact) else "label")),
        ("perplexity", _perplexity(artifact.perplexity))
        if _is_language(artifact)
        else ("accuracy", _accuracy(artifact.accuracy)),
        *(_gate_rows(artifact.gate) if artifact.gate else []),
        *((f"in {record.runtime}", _runtime(record)) for record in artifact.runtimes),
        ("operators", ", ".join(f"{count} {name}" for name, count in operators)),
        *(("note", note) for note in artifact.notes),
    ]


def compression_line(step: CompressionStep) -> str:
    """Return a step of a chain in one line."""
    settings = ", ".join(f"{name} {value}" for name, value in step.settings.items() if value is not None)
    share = step.parameters_after / step.parameters_before
    return f"{step.step} ({settings}): {step.parameters_before:,} parameters became {step.parameters_after:,} ({share:.1%})"


def _calibration(record: CalibrationRecord) -> str:
    tokens = "" if record.tokens is None else f", {record.tokens:,} tokens"
    ranges = "" if record.ranges is None else f"; ranges by {record.ranges}"
    digest = "" if record.sha256 is None else f" (sha256 {record.sha256[:12]}…)"
    return f"{record.samples:,} samples{tokens} of {record.data}{digest}{ranges}"


def gate_line(gate: GateRecord) -> str:
    """Return what a gate measured and what it took, in one line."""
    kept = gate.steps[-1].kept
    how = (
        f"{_parts(len(kept))} kept in more bits, {len(gate.steps)} artifacts tried"
        if kept
        else "nothing kept in more bits"
    )
    keras = "" if gate.metric == "parity" else f", Keras {gate.keras:.4g}"
    where = f"on {gate.samples:,} of {gate.data}"
    return f"{gate.metric} {gate.value:.4g}{keras} {where}; allowed to lose {gate.allowed:g}: passed, {how}"


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count} parts"


def _gate_rows(gate: GateRecord) -> Rows:
    """Return each artifact that was tried, and what was kept in it beyond the one before."""
    rows: Rows = [("gate", gate_line(gate))]
    before: tuple[str, ...] = ()
    for step in gate.steps:
        added = ", ".join(name for name in step.kept if name not in before) or "nothing kept"
        rows.append(("", f"{gate.metric} {step.value:.4g}, {size(step.size_bytes)}: {added}"))
        before = step.kept
    return rows


def summary_row(artifact: Artifact) -> tuple[str, ...]:
    """Return an artifact in one row: format, bytes, where it was checked, error, agreement, accuracy."""
    parity, accuracy, runtime = artifact.parity, artifact.accuracy, artifact.runtimes[0]
    language = _is_language(artifact)
    checked = f"{runtime.runtime} {runtime.version}" if runtime.version else runtime.reason or runtime.status
    return (
        artifact.format,
        size(artifact.size_bytes),
        f"{parity.samples:,} {parity.inputs} inputs, {checked}",
        f"{parity.max_abs_error:.2g} of {parity.reference_range:.3g} (bound {parity.bound:.2g})",
        "—" if parity.agreement is None else f"{parity.agreement:.2%}",
        _perplexity(artifact.perplexity)
        if language
        else "not measured"
        if accuracy is None
        else f"{accuracy.artifact:.2%} (Keras {accuracy.keras:.2%})",
    )


def verify_rows(report: VerifyReport) -> Rows:
    """Return what a bundle's check of itself found."""
    rows: Rows = [("files", f"{report.files} as they were written")]
    if report.tokenizer is not None:
        check = report.tokenizer
        rows.append(
            ("tokenizer", f"{check.cases} texts, " + ("the same ids" if check.passed else f"failed: {check.reason}"))
        )
    return rows + [(check.runtime, _check(check)) for check in report.runtimes]


def _check(check: RuntimeCheck) -> str:
    if check.status == "skipped":
        return f"skipped: {check.reason}"
    agreement = "" if check.agreement is None else f", same answer on {check.agreement:.1%}"
    error = (
        "" if check.max_abs_error is None else f", off by at most {check.max_abs_error:.2g} (bound {check.bound:.2g})"
    )
    reason = f": {check.reason}" if check.reason else ""
    return f"{check.status} in version {check.version}, {check.runs} runs{error}{agreement}{reason}"


def _is_language(artifact: Artifact) -> bool:
    return any(signature.cache is not None for signature in artifact.signatures)


def _parity(parity: Parity, choice: str) -> str:
    agreement = "" if parity.agreement is None else f", same {choice} on {parity.agreement:.2%}"
    return (
        f"off by at most {parity.max_abs_error:.3g} on outputs up to {parity.reference_range:.3g} "
        f"(bound {parity.bound:.3g}){agreement}, {parity.samples:,} {parity.inputs} inputs"
    )


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "not measured (no labelled data)"
    return f"{accuracy.artifact:.2%}, Keras {accuracy.keras:.2%} ({accuracy.samples:,} samples of {accuracy.data})"


def _perplexity(perplexity: Perplexity | None) -> str:
    if perplexity is None:
        return "not measured (no text)"
    return (
        f"{perplexity.artifact:.3f}, Keras {perplexity.keras:.3f} ({perplexity.tokens:,} tokens of {perplexity.data})"
    )


def _runtime(record: RuntimeRecord) -> str:
    version = f" with {record.version}" if record.version else ""
    reason = f": {record.reason}" if record.reason else ""
    return f"{record.status}{version}{reason}"
