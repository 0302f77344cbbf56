"""The benchmark: several bundles and runtimes, measured so that they can be compared.

Every (bundle, runtime) pair has a process of its own. Only so are its load time (the import of the runtime included) and
its peak memory its own, and a runtime that crashes says which one it was. Where they are compared, the processes take
turns of a quarter of a second and less, in an order drawn anew for each round, so that a clock that falls or a neighbour
that wakes up hits all of them. Only one is at work at a time; the others wait for their next request. After each change of
turn one query is not counted, because the caches were another's. All of them are loaded at once: on a board with little
memory, measure fewer together. ``docs/benchmark.md`` has the modes.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import edgelm_device_profiles as device_profiles
from edgelm_runtimes.machine import machine_facts

from edgelm.bench.energy import check_seconds
from edgelm.bench.facts import profile_facts
from edgelm.bench.findings import Arrivals, Mode
from edgelm.bench.lanes import Asked, open_lane
from edgelm.bench.loops import Progress
from edgelm.bench.meter_choice import MeterChoice, choose_meter
from edgelm.bench.modes import amount_of, check_mode
from edgelm.bench.realtime import check_rate
from edgelm.bench.resume import check_resumable
from edgelm.bench.run import Run
from edgelm.bench.session import Checkpoint, Place, Session
from edgelm.bench.target import ProcessTarget
from edgelm.bundle import open_bundle
from edgelm.errors import InputError
from edgelm.meters import Meter

__all__ = ["benchmark", "choose", "place_of"]


def benchmark(
    paths: Sequence[str | Path] | str | Path,
    *,
    mode: str = "standard",
    runtime: str | Sequence[str] | None = None,
    profile: str | None = None,
    threads: int | None = None,
    queries: int | None = None,
    seconds: float | None = None,
    deadline_s: float | None = None,
    rate_per_s: float | None = None,
    arrivals: Arrivals = "poisson",
    texts: Sequence[str] | None = None,
    meter: str | Meter | None = None,
    energy_seconds: float | None = None,
    model_energy: bool = False,
    resume: Sequence[Run] = (),
    seed: int | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[Run]:
    """Measure bundles on this machine, each in each runtime, and return a run of each pair.

    Args:
        paths: One bundle or several.
        mode: ``quick``, ``standard``, ``sustained``, ``mlperf`` or ``realtime``.
        runtime: One runtime or several; None takes the first of each bundle that is installed.
        profile: The device that the numbers are wanted for. None takes the one that this machine is, if any. A run on
            another machine says so.
        threads: Of the runtime; None lets edgelm choose.
        queries: Stop after so many of each.
        seconds: Stop after so long of each.
        deadline_s: What one query may take; the runs tell the share that kept to it.
        rate_per_s: In real time, how many queries arrive a second.
        arrivals: In real time, how they do: ``poisson`` or ``fixed``.
        texts: The inputs, cycled through; None takes the golden inputs of each bundle.
        meter: As of `edgelm.bench.meter_choice.choose_meter`; None is ``none`` in quick mode, and ``auto`` otherwise.
        energy_seconds: Of each energy window; None lets the sensor decide.
        model_energy: Whether to say what the power in the profile would make of the times, in a field of its own.
        resume: Runs of one session that were stopped: theirs is the beginning of this one's. The bundles, the runtimes and
            the amounts have to be named again.
        seed: Of the order of turns and of arrivals; None draws one. It is in the run.
        progress: Called with a step, how much of it is done, and how much there is.
        checkpoint: Called once a minute with the runs so far. If it raises `OutputError`, the measurement ends.

    Returns:
        In the order of `paths`, then of the runtimes. Ctrl-C, a process that dies and a disk that is full end the
        measurement, of all or of that one: what was measured so far is returned, with what stopped it, and a bundle without
        a single query is left out. All but the first are compared with the first, where they took turns.

    Raises:
        InputError: A number is not above 0, the texts do not fit a bundle, or a run cannot be taken up.
        BundleError: A bundle cannot be opened.
        ProfileError: There is no such profile.
        MeterError: The meter that was named cannot be read.
        RuntimeUnavailableError: A runtime is not installed, or refuses a bundle.
        ExecutionError: A runtime failed or crashed before anything was measured.
        KeyboardInterrupt: Ctrl-C, before anything was measured.
    """
    _check(queries=queries, seconds=seconds, deadline_s=deadline_s, threads=threads, texts=texts)
    found = check_mode(mode, generates=False)
    check_rate(rate_per_s, realtime=found == "realtime")
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    runtimes: Sequence[str | None] = [runtime] if runtime is None or isinstance(runtime, str) else runtime
    if not files:
        raise InputError("There is no bundle to measure: name at least one.")
    if found == "sustained" and len(files) * max(1, len(runtimes or ())) > 1:
        raise InputError(
            "A sustained run heats the device, so the second would begin hot: measure one bundle in one runtime."
        )
    check_seconds(energy_seconds)
    place = place_of(profile)
    check_resumable(resume, found, place.machine)
    choice = choose(meter, found)
    asked = Asked(
        session=secrets.token_hex(8),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        mode=found,
        amount=amount_of(found, queries=queries, seconds=seconds),
        threads=threads,
        deadline_s=deadline_s,
        rate_per_s=rate_per_s,
        arrivals=arrivals,
        texts_given=texts is not None,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    with contextlib.ExitStack() as stack:
        bundles = [(path, stack.enter_context(open_bundle(path))) for path in files]
        pairs = [(path, bundle, name) for path, bundle in bundles for name in runtimes or (None,)]
        lanes = [
            open_lane(stack, Path(path), bundle, name, threads, texts, start=ProcessTarget)
            for path, bundle, name in pairs
        ]
        session = Session(
            lanes,
            asked,
            place,
            choice,
            energy_seconds=energy_seconds,
            model=place.profile if model_energy else None,
            tell=progress or _silent,
        )
        session.load(resume)
        return session.measure(checkpoint)


def place_of(profile: str | None) -> Place:
    """Return this machine, and the device of a profile; without one, the device that this machine is.

    Raises:
        ProfileError: There is no such profile.
    """
    wanted = None if profile is None else device_profiles.load(profile)
    machine, detection = machine_facts(), device_profiles.detect()
    if wanted is None and detection.profile is not None:
        wanted = device_profiles.load(detection.profile)
    return Place(machine, None if wanted is None else profile_facts(wanted, detection, machine), wanted)


def choose(meter: str | Meter | None, mode: Mode) -> MeterChoice:
    """Return the meter of a session.

    Raises:
        MeterError: The one that was named cannot be read.
        InputError: There is none of that name.
    """
    if meter is None and mode == "quick":
        return MeterChoice(reason="a quick run measures no energy unless a meter is named, such as with --meter auto")
    return choose_meter("auto" if meter is None else meter)


def _check(
    *,
    queries: int | None,
    seconds: float | None,
    deadline_s: float | None,
    threads: int | None,
    texts: Sequence[str] | None,
) -> None:
    numbers = {"queries": queries, "seconds": seconds, "deadline_s": deadline_s, "threads": threads}
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}, and must be a number above 0.")
    if isinstance(texts, str) or (texts is not None and not texts):
        raise InputError("There is no text to measure with: give a list of at least one.")


def _silent(step: str, done: int, total: int) -> None:
    """Show nothing."""
