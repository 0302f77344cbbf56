"""The runtimes by name, whether they are installed here, and which one suits a bundle.

An adapter is named as ``"module:function"`` and imported when it is asked for: nothing of a runtime that is not used is
ever loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from edgelm.bundle import Artifact, Manifest, RuntimeRecord, Signature
from edgelm.errors import InputError, MissingPackageError, RuntimeUnavailableError, unknown_name
from edgelm_runtimes.adapters.shared import version
from edgelm_runtimes.device import Kind, parse_device
from edgelm_runtimes.program import CausalProgram, OpenCausal, OpenProgram, Program, ProgramOptions
from edgelm_runtimes.seq2seq_program import OpenSeq2Seq, Seq2SeqProgram

__all__ = [
    "RUNTIMES",
    "RuntimeEntry",
    "RuntimeState",
    "advice_for",
    "available",
    "choose_artifact",
    "default_runtime",
    "default_threads",
    "open_causal",
    "open_program",
    "open_seq2seq",
    "runtime_version",
]

Opened = TypeVar("Opened")

# More threads than this only heat a small board: four little cores are what most of them have, and on a phone the fifth
# core is a slower one that the others wait for.
_MAX_DEFAULT_THREADS = 4
_MANY_WEIGHTS = 2_000_000


@dataclass(frozen=True)
class RuntimeEntry:
    """One runtime of the table.

    Attributes:
        adapter: ``"module:function"``, an `OpenProgram`.
        causal: Likewise an `OpenCausal`; None where it runs no language models.
        formats: Of the artifacts that it opens.
        package: As it is imported; None where nothing needs to be installed.
        distribution: As it is installed.
        extra: Of edgelm, that brings it.
        devices: Kinds of devices that its `adapter` runs on (`edgelm_runtimes.device`); the others run on the CPU alone.
        seq2seq: As `causal`, an `OpenSeq2Seq`; None where it runs no encoder-decoders.
    """

    adapter: str
    formats: tuple[str, ...]
    package: str | None
    distribution: str | None
    extra: str | None
    causal: str | None = None
    seq2seq: str | None = None
    devices: tuple[Kind, ...] = ("cpu",)


RUNTIMES: dict[str, RuntimeEntry] = {
    "litert": RuntimeEntry(
        "edgelm_runtimes.adapters.litert:open_program", ("tflite",), "ai_edge_litert", "ai-edge-litert", "litert",
        "edgelm_runtimes.adapters.litert_causal:open_causal", "edgelm_runtimes.adapters.litert_seq2seq:open_seq2seq",
        ("cpu", "gpu", "edgetpu", "delegate"),
    ),
    "onnx": RuntimeEntry(
        "edgelm_runtimes.adapters.onnx:open_program", ("onnx",), "onnxruntime", "onnxruntime", "onnx",
        "edgelm_runtimes.adapters.onnx_causal:open_causal", "edgelm_runtimes.adapters.onnx_seq2seq:open_seq2seq",
    ),
    "tflite": RuntimeEntry(
        "edgelm_runtimes.adapters.tflite:open_program", ("tflite",), "tflite_runtime", "tflite-runtime", "tflite",
        devices=("cpu", "edgetpu", "delegate"),
    ),
    # For tests of applications: never chosen by itself, and in no bundle's list.
    "fake": RuntimeEntry(
        "edgelm_runtimes.adapters.fake:open_program", ("tflite", "onnx"), None, None, None,
        "edgelm_runtimes.adapters.fake_causal:open_causal", "edgelm_runtimes.adapters.fake_seq2seq:open_seq2seq",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RuntimeState:
    """Whether a runtime can be used here.

    Attributes:
        runtime: As in `RUNTIMES`.
        usable: Whether it is installed, and fits what else is installed.
        version: Of the installed package; None where it is not installed.
        advice: What to do to make it usable; None where it is.
    """

    runtime: str
    usable: bool
    version: str | None
    advice: str | None


def available() -> tuple[RuntimeState, ...]:
    """Return the state of every runtime that runs models, in the order of preference. None of them is imported."""
    states = []
    for name, entry in RUNTIMES.items():
        if entry.package is None:
            continue
        advice = advice_for(name)
        states.append(RuntimeState(name, advice is None, runtime_version(name), advice))
    return tuple(states)


def advice_for(name: str) -> str | None:
    """Return what to do to make a runtime usable here, None where it is.

    Raises:
        RuntimeUnavailableError: No runtime is called so.
    """
    if runtime_version(name) is None:
        return f"pip install 'edgelm[{RUNTIMES[name].extra}]'"
    return _numpy_conflict(name)


def _numpy_conflict(name: str) -> str | None:
    """Return what to do where tflite-runtime, built against NumPy 1, meets a later one: its import passes, its use fails."""
    if name == "tflite" and int(importlib.metadata.version("numpy").partition(".")[0]) >= 2:
        return "tflite-runtime needs NumPy 1, and NumPy 2 is installed: pip install 'numpy<2', or use ai-edge-litert"
    return None


def runtime_version(name: str) -> str | None:
    """Return the installed version of a runtime, None where it is not installed. Nothing of it is imported.

    Raises:
        RuntimeUnavailableError: No runtime is called so.
    """
    entry = _find(name)
    if entry.package is None or entry.distribution is None:
        return "1"
    if importlib.util.find_spec(entry.package) is None:
        return None
    return version(entry.distribution)


def default_runtime(manifest: Manifest) -> str:
    """Return the runtime to use: an installed one that a bundle was verified in, else an installed one that it allows.

    Raises:
        RuntimeUnavailableError: None is installed; the message says how to get one.
    """
    allowed: list[tuple[bool, str]] = []
    refused: list[str] = []
    for artifact in manifest.artifacts:
        for record in artifact.runtimes:
            if record.runtime not in RUNTIMES:
                continue  # of a later edgelm, which may have runtimes of its own
            if record.status == "refused":
                refused.append(f"{record.runtime} is refused ({record.reason})")
            else:
                allowed.append((record.status != "verified", record.runtime))
    names = list(dict.fromkeys(name for _, name in sorted(allowed, key=lambda item: item[0])))
    for name in names:
        if advice_for(name) is None:
            return name
    if not names:
        raise RuntimeUnavailableError(
            f"The bundle '{manifest.name}' lists no runtime that this edgelm has{': ' if refused else ''}"
            f"{'; '.join(refused)}. Known: {', '.join(RUNTIMES)}."
        )
    ways = " or ".join(f"pip install 'edgelm[{RUNTIMES[name].extra}]'" for name in names)
    raise RuntimeUnavailableError(
        f"No runtime that can open the bundle '{manifest.name}' is installed here. It runs in {', '.join(names)}. "
        f"Install one with: {ways}"
    )


def choose_artifact(manifest: Manifest, runtime: str) -> Artifact:
    """Return the artifact of a bundle that a runtime opens.

    Raises:
        RuntimeUnavailableError: No runtime is called so, the bundle has no file for it, or says that it must not be used.
    """
    entry = _find(runtime)
    reasons = []
    for artifact in manifest.artifacts:
        if artifact.format not in entry.formats:
            continue
        record = next((record for record in artifact.runtimes if record.runtime == runtime), None)
        if record is None and runtime != "fake":
            reasons.append(f"{artifact.file} does not list it")
        elif record is not None and record.status == "refused":
            reasons.append(f"{artifact.file} refuses it: {record.reason}")
        else:
            return artifact
    raise RuntimeUnavailableError(
        f"The bundle '{manifest.name}' cannot be run in '{runtime}': "
        f"{'; '.join(reasons) or 'it has no ' + ' or '.join(entry.formats) + ' file'}. It runs in: {_allowed(manifest)}."
    )


def _allowed(manifest: Manifest) -> str:
    records: list[RuntimeRecord] = [record for artifact in manifest.artifacts for record in artifact.runtimes]
    return ", ".join(record.runtime for record in records if record.status != "refused") or "nothing"


def default_threads(manifest: Manifest | None = None) -> int:
    """Return how many threads a runtime gets unless told otherwise: the cores that this process may use, at most 4.

    A model that is small gets one: waking a second thread takes longer than what it would do. The shipped intent
    classifier (0.4 million weights in its layers) answers in 0.14 ms on one thread and 0.23 ms on two; at 3 million (4
    layers of width 256) they are level at 16 tokens, and two threads win at 128.
    """
    if manifest is not None and _layer_weights(manifest) < _MANY_WEIGHTS:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_DEFAULT_THREADS, cores)


def _layer_weights(manifest: Manifest) -> int:
    """Return the weights that each token is multiplied with; of a traced model, all of them."""
    figures = [manifest.model.architecture.get(name) for name in ("layers", "width", "feed_forward")]
    if not all(isinstance(figure, int) for figure in figures):
        return manifest.model.parameters
    layers, width, feed_forward = (int(figure or 0) for figure in figures)
    return layers * (4 * width * width + 2 * width * feed_forward)


def open_program(runtime: str, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> Program:
    """Open a model file in a runtime.

    Args:
        runtime: A name in `RUNTIMES`.
        file: The model file.
        signatures: How it is called, from the manifest.
        options: Device and threads.

    Raises:
        RuntimeUnavailableError: There is no such runtime or device, it cannot be loaded here, or it refuses the file.
        MissingPackageError: It is not installed.
        InputError: The number of threads makes no sense.
    """
    open_with = cast(OpenProgram, _adapter(runtime, _find(runtime).adapter, options))
    return _open(runtime, lambda: open_with(file, signatures, _with_threads(options)))


def open_causal(runtime: str, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> CausalProgram:
    """Open a language model in a runtime; arguments and errors as of `open_program`.

    Raises:
        RuntimeUnavailableError: Also where the runtime has no adapter for language models.
    """
    name = _find(runtime).causal
    if name is None:
        able = ", ".join(known for known, entry in RUNTIMES.items() if entry.causal is not None)
        raise RuntimeUnavailableError(f"runtime '{runtime}' runs no language models in this edgelm. These do: {able}.")
    open_with = cast(OpenCausal, _adapter(runtime, name, options))
    return _open(runtime, lambda: open_with(file, signatures, _with_threads(options)))


def open_seq2seq(
    runtime: str, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions
) -> Seq2SeqProgram:
    """Open an encoder-decoder in a runtime; arguments and errors as of `open_program`.

    Raises:
        RuntimeUnavailableError: Also where the runtime has no adapter for encoder-decoders.
    """
    name = _find(runtime).seq2seq
    if name is None:
        able = ", ".join(known for known, entry in RUNTIMES.items() if entry.seq2seq is not None)
        raise RuntimeUnavailableError(f"runtime '{runtime}' runs no encoder-decoders in this edgelm. These do: {able}.")
    open_with = cast(OpenSeq2Seq, _adapter(runtime, name, options))
    return _open(runtime, lambda: open_with(file, signatures, _with_threads(options)))


def _adapter(runtime: str, name: str, options: ProgramOptions) -> object:
    """Return an adapter's function, once all that it needs is known to be there."""
    entry = _find(runtime)
    kind = parse_device(options.device).kind
    able = entry.devices if name == entry.adapter else ("cpu",)
    if kind not in able:
        what = "" if name == entry.adapter else " for models that write text"
        raise RuntimeUnavailableError(
            f"runtime '{runtime}' has no device '{options.device}'{what} in this edgelm. It has: {', '.join(able)}."
        )
    if options.threads is not None and options.threads < 1:
        raise InputError(f"A runtime needs at least 1 thread, and {options.threads} were asked for.")
    if runtime_version(runtime) is None:
        raise MissingPackageError(entry.package or "", extra=entry.extra or "", what=f"runtime '{runtime}'")
    if (conflict := _numpy_conflict(runtime)) is not None:
        raise RuntimeUnavailableError(f"runtime '{runtime}' cannot be used: {conflict}.")
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _with_threads(options: ProgramOptions) -> ProgramOptions:
    return dataclasses.replace(options, threads=default_threads() if options.threads is None else options.threads)


def _open(runtime: str, make: Callable[[], Opened]) -> Opened:
    try:
        return make()
    except ImportError as error:
        entry = _find(runtime)
        raise RuntimeUnavailableError(
            f"runtime '{runtime}': {entry.distribution} {runtime_version(runtime)} is installed and cannot be imported "
            f"({error}). Install it anew: pip install --upgrade --force-reinstall 'edgelm[{entry.extra}]'"
        ) from error


def _find(name: str) -> RuntimeEntry:
    if name not in RUNTIMES:
        raise RuntimeUnavailableError(unknown_name("runtime", name, RUNTIMES))
    return RUNTIMES[name]
