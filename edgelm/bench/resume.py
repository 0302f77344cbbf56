"""Taking up a run that was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edgelm_runtimes.machine import MachineFacts

from edgelm.bench.facts import machine_name
from edgelm.bench.findings import Mode
from edgelm.bench.generation_run import GenerationRun
from edgelm.bench.lanes import Lane
from edgelm.bench.run import Run
from edgelm.bundle import Bundle
from edgelm.bundle.checks import MANIFEST
from edgelm.errors import InputError

__all__ = ["bundle_digest", "check_resumable", "earlier_of"]


def check_resumable(runs: Sequence[Run] | Sequence[GenerationRun], mode: Mode, machine: MachineFacts) -> None:
    """Refuse runs that cannot be gone on with.

    Raises:
        InputError: They are of several sessions, of another mode or machine, were not stopped, or have no beginning that
            still stands: a device that was left alone has cooled, and a queue is gone.
    """
    if not runs:
        return
    first = runs[0]
    if any(run.session != first.session for run in runs):
        raise InputError(
            "These runs are of several sessions, which took no turns with each other: resume those of one."
        )
    if mode in ("sustained", "realtime"):
        raise InputError(f"A {mode} run cannot be taken up: its heat or its queue is gone. Measure it anew.")
    if first.settings.mode != mode:
        raise InputError(f"The run to resume is of the mode '{first.settings.mode}', not '{mode}': name its mode.")
    if all(run.stopped is None for run in runs):
        raise InputError("The run to resume was not stopped: it has all that was asked for.")
    there, here = first.machine, machine
    if (there.device_model, there.cpu_model, there.architecture) != (
        here.device_model, here.cpu_model, here.architecture,
    ):  # fmt: skip
        raise InputError(f"The run to resume is of {machine_name(there)}, and this is {machine_name(here)}.")


def earlier_of(lanes: Sequence[Lane], runs: Sequence[Run]) -> list[tuple[Lane, Run]]:
    """Return each run with the lane that goes on with it; the lanes are loaded.

    Raises:
        InputError: A run has no lane: its bundle, its runtime or its threads were not named again.
    """
    found = []
    left = list(lanes)
    for run in runs:
        lane = next((lane for lane in left if _continues(lane, run)), None)
        if lane is None:
            raise InputError(
                f"The run to resume is of {run.bundle.name} in {run.runtime.runtime} with {run.runtime.threads} threads, "
                "which was not named, or the bundle has changed since. Name the same bundles, runtimes and threads again."
            )
        left.remove(lane)
        found.append((lane, run))
    return found


def bundle_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of a bundle's manifest, as a run records it."""
    return hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()


def _continues(lane: Lane, run: Run) -> bool:
    facts = None if lane.loaded is None else lane.loaded.facts
    return (
        facts is not None
        and bundle_digest(lane.bundle) == run.bundle.manifest_sha256
        and (facts.runtime, facts.threads) == (run.runtime.runtime, run.runtime.threads)
    )
