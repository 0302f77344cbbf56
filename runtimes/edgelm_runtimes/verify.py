"""A device checks itself: the golden vectors of a bundle, through its own tokenizer and runtimes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Artifact, Bundle, GoldenCase, Parity, Signature, TokenizerRecord, open_bundle
from edgelm.errors import BundleError, ExecutionError, InputError, RuntimeUnavailableError
from edgelm_runtimes import feed
from edgelm_runtimes.program import Arrays, Program, ProgramOptions
from edgelm_runtimes.prompt import Prompter
from edgelm_runtimes.registry import (
    RUNTIMES,
    advice_for,
    choose_artifact,
    open_causal,
    open_program,
    open_seq2seq,
    runtime_version,
)
from edgelm_runtimes.text import open_encoder, read_tokenizer
from edgelm_runtimes.verify_causal import causal_answers
from edgelm_runtimes.verify_seq2seq import seq2seq_answers

__all__ = ["RuntimeCheck", "TokenizerCheck", "VerifyReport", "verify"]

_CHOICES = ("logits", "probabilities", "sigmoid")


@dataclass(frozen=True)
class TokenizerCheck:
    """The tokenizer, against the ids that it gave on the workstation.

    Attributes:
        cases: Texts compared.
        passed: Whether every id of every text is the same.
        reason: What differs first; None where nothing does.
    """

    cases: int
    passed: bool
    reason: str | None


@dataclass(frozen=True)
class RuntimeCheck:
    """One runtime, against Keras's outputs.

    Attributes:
        runtime: Its name.
        status: ``passed``, ``failed``, or ``skipped`` where it is not installed or the bundle refuses it.
        version: Of the installed package.
        artifact: The file that it ran.
        runs: Golden cases, times the signatures that each fits into.
        max_abs_error: The largest difference of any output element; None where nothing ran.
        bound: What it had to stay under.
        agreement: Share of the runs with Keras's top label; None where the output is not a choice.
        agreement_bound: What the bundle promises over all of its samples; None where it promises nothing. One run more
            than that share of so few may differ.
        reason: Why it failed or was skipped.
    """

    runtime: str
    status: Literal["passed", "failed", "skipped"]
    version: str | None = None
    artifact: str | None = None
    runs: int = 0
    max_abs_error: float | None = None
    bound: float | None = None
    agreement: float | None = None
    agreement_bound: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        bundle: The bundle's name.
        files: Files whose SHA-256 was checked.
        tokenizer: None where the bundle has no tokenizer, or no golden case has a text.
        runtimes: Each runtime that the bundle names, or the one that was asked for.
        passed: The tokenizer is exact, at least one runtime passed, and none failed.
    """

    bundle: str
    files: int
    tokenizer: TokenizerCheck | None
    runtimes: tuple[RuntimeCheck, ...]
    passed: bool


def verify(
    path: str | Path, *, runtime: str | None = None, device: str = "cpu", threads: int | None = None
) -> VerifyReport:
    """Check a bundle on this device: its files, its tokenizer, and its numbers in each runtime.

    Args:
        path: The bundle.
        runtime: Only this one; it has to be installed. None checks each that is.
        device: Where it runs; another than the CPU needs `runtime`.
        threads: Of the runtime.

    Raises:
        InputError: A device was given without a runtime.
        BundleError: The bundle cannot be opened, or has no golden vectors.
        RuntimeUnavailableError: The runtime asked for cannot be used, or has no file in the bundle.
    """
    if runtime is None and device != "cpu":
        raise InputError(f"The device '{device}' is a runtime's: say which one with --runtime.")
    with open_bundle(path) as bundle:
        cases = bundle.golden()
        if not cases:
            raise BundleError(f"The bundle '{bundle.manifest.name}' has no golden vectors: it cannot be verified.")
        tokenizer = _check_tokenizer(bundle, cases)
        if runtime is None:
            checks = tuple(
                _check_or_skip(bundle, name, cases, ProgramOptions(threads=threads)) for name in _runtimes(bundle)
            )
        else:
            artifact = choose_artifact(bundle.manifest, runtime)
            checks = (_check(bundle, artifact, runtime, cases, ProgramOptions(device, threads)),)
        states = [check.status for check in checks]
        passed = (tokenizer is None or tokenizer.passed) and "passed" in states and "failed" not in states
        return VerifyReport(bundle.manifest.name, len(bundle.manifest.files), tokenizer, checks, passed)


def _check_tokenizer(bundle: Bundle, cases: Sequence[GoldenCase]) -> TokenizerCheck | None:
    record = bundle.manifest.tokenizer
    pairs = [(case.text, case.ids) for case in cases if case.text is not None and case.ids is not None]
    if record is None or not pairs:
        return None
    encode = _encoder(bundle, record)
    for index, (text, wanted) in enumerate(pairs):
        try:
            found = encode(text)
        except InputError as error:
            return TokenizerCheck(len(pairs), False, f"text {index + 1}: {error}")
        if found != wanted:
            place = next(
                (at for at, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other),
                min(len(found), len(wanted)),
            )
            here, there = found[place : place + 5], wanted[place : place + 5]
            reason = f"text {index + 1} differs from token {place} on: {here}, must be {there}"
            return TokenizerCheck(len(pairs), False, reason)
    return TokenizerCheck(len(pairs), True, None)


def _encoder(bundle: Bundle, record: TokenizerRecord) -> Callable[[str], list[int]]:
    """Return what turns a text into ids; what stands before and after a translation's source is not the tokenizer's."""
    if bundle.manifest.translation is not None:
        reader = Prompter(read_tokenizer(bundle.path(record.file)), record.vocabulary_size)
        return lambda text: reader.encode(text, special=False)
    encoder = open_encoder(bundle.path(record.file), record)
    return lambda text: encoder.encode(text).ids


def _runtimes(bundle: Bundle) -> list[str]:
    names = [record.runtime for artifact in bundle.manifest.artifacts for record in artifact.runtimes]
    return [name for name in dict.fromkeys(names) if name in RUNTIMES]


def _check_or_skip(bundle: Bundle, runtime: str, cases: Sequence[GoldenCase], options: ProgramOptions) -> RuntimeCheck:
    try:
        artifact = choose_artifact(bundle.manifest, runtime)
    except RuntimeUnavailableError as error:
        return RuntimeCheck(runtime, "skipped", reason=str(error))
    if (advice := advice_for(runtime)) is not None:
        return RuntimeCheck(runtime, "skipped", artifact=artifact.file, reason=advice)
    return _check(bundle, artifact, runtime, cases, options)


def _check(
    bundle: Bundle, artifact: Artifact, runtime: str, cases: Sequence[GoldenCase], options: ProgramOptions
) -> RuntimeCheck:
    file, role = bundle.path(artifact.file), _role(artifact)
    tally = _Tally()
    try:
        if bundle.manifest.task == "generate":
            causal = open_causal(runtime, file, artifact.signatures, options)
            try:
                for found, wanted in causal_answers(causal, cases):
                    tally.add([_centred(found)], [_centred(wanted)], role)
            finally:
                causal.close()
        elif bundle.manifest.translation is not None:
            pair = open_seq2seq(runtime, file, artifact.signatures, options)
            try:
                for found, wanted in seq2seq_answers(pair, cases):
                    tally.add([_centred(found)], [_centred(wanted)], role)
            finally:
                pair.close()
        else:
            program = open_program(runtime, file, artifact.signatures, options)
            try:
                pad_id = bundle.manifest.tokenizer.pad_id if bundle.manifest.tokenizer else 0
                for case in cases:
                    for signature in _fitting(artifact, case):
                        tally.add(*_pair(_run(program, signature, case, pad_id), case.outputs), role)
            finally:
                program.close()
    except ExecutionError as error:
        return RuntimeCheck(runtime, "failed", runtime_version(runtime), artifact.file, tally.runs, reason=str(error))
    agreement = tally.same / tally.runs if role in _CHOICES and tally.runs else None
    reason = _verdict(artifact.parity, tally.worst, tally.finite, agreement, tally.runs)
    return RuntimeCheck(
        runtime, "failed" if reason else "passed", runtime_version(runtime), artifact.file, tally.runs, tally.worst,
        artifact.parity.bound, agreement, artifact.parity.agreement_bound, reason,
    )  # fmt: skip


@dataclass
class _Tally:
    """What was seen of a runtime's answers."""

    worst: float = 0.0
    same: int = 0
    runs: int = 0
    finite: bool = True

    def add(self, found: list[NDArray[Any]], wanted: list[NDArray[Any]], role: str) -> None:
        """Take in one answer, beside Keras's."""
        self.worst = max(self.worst, *(_difference(*pair) for pair in zip(found, wanted, strict=True)))
        self.finite = self.finite and all(bool(np.isfinite(value).all()) for value in found)
        self.same += _top(found[0], role) == _top(wanted[0], role)
        self.runs += 1


def _role(artifact: Artifact) -> str:
    """Return what the model gives; of one that writes, scores, which its signatures that prefill or encode do not give."""
    kinds = ("prefill", "encode")
    return next(signature.outputs[0].role for signature in artifact.signatures if signature.kind not in kinds)


def _centred(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores without their mean, which changes no probability."""
    centred: NDArray[np.float32] = scores - scores.mean()
    return centred


def _fitting(artifact: Artifact, case: GoldenCase) -> list[Signature]:
    """Return every signature that takes a case: a fault of one bucket shows only in that bucket."""
    tokens = feed.token_port(artifact.signatures[0])
    if tokens is None:
        return [artifact.signatures[0]]
    count = case.inputs[tokens.name].shape[1]
    return [s for s in artifact.signatures if s.sequence_length is None or s.sequence_length >= count]


def _run(program: Program, signature: Signature, case: GoldenCase, pad_id: int) -> Arrays:
    arrays = feed.check_arrays([signature], case.inputs, None)
    outputs = program.run(signature, feed.fill(signature, arrays, pad_id))
    tokens = feed.token_port(signature)
    return feed.cut(outputs, signature.sequence_length, arrays[tokens.name].shape[1]) if tokens else outputs


def _pair(found: Arrays, wanted: Arrays) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return outputs in the same order: by name, or as they come where the formats name them differently."""
    if set(found) == set(wanted):
        return list(found.values()), [wanted[name] for name in found]
    if len(found) != len(wanted):
        raise ExecutionError(
            f"The model gives the outputs {', '.join(found)}, the golden vectors hold {', '.join(wanted)}."
        )
    return list(found.values()), list(wanted.values())


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    if found.shape != wanted.shape:
        raise ExecutionError(f"The model gives an output of the shape {list(found.shape)}, Keras {list(wanted.shape)}.")
    return float(np.abs(found.astype(np.float64) - wanted).max()) if found.size else 0.0


def _top(values: NDArray[Any], role: str) -> int:
    """Return the index of the answer; of a single output, on which side of the middle it is."""
    if values.size == 1:
        return int(values.ravel()[0] > (0 if role == "logits" else 0.5))
    return int(values.argmax())


def _verdict(parity: Parity, worst: float, finite: bool, agreement: float | None, runs: int) -> str | None:
    """Return why a runtime fails, None where it passes."""
    if not finite:
        return "it answers with NaN or infinity"
    if not worst <= parity.bound:
        return f"it is off by {worst:.3g}, and the bound is {parity.bound:.3g}"
    if agreement is not None and parity.agreement_bound is not None:
        # So few cases cannot show a share of, say, 99 %: the first that differs is allowed for.
        allowed = ceil((1 - parity.agreement_bound) * runs)
        if round((1 - agreement) * runs) > allowed:
            return f"it gives Keras's label to {agreement:.0%} of {runs} runs, and the bound is {parity.agreement_bound:.1%}"
    return None
