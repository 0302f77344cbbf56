"""The options of ``edgelm benchmark`` that both kinds of models have, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgelm.bench.log import AnyRun

__all__ = ["FILE", "Protocol", "Results", "protocol_options", "result_options"]

FILE = click.Path(path_type=Path)

_Command = TypeVar("_Command", bound=Callable[..., Any])

_POSITIVE = click.FloatRange(0, min_open=True)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How it is measured; the names are those of `edgelm.bench.benchmark`."""

    mode: str
    runtime: tuple[str, ...] | None
    profile: str | None
    threads: int | None
    seconds: float | None
    meter: str | None
    energy_seconds: float | None
    model_energy: bool
    seed: int | None

    def arguments(self) -> dict[str, Any]:
        """Return them for `edgelm.bench.benchmark` and `benchmark_generation`."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Results:
    """Where the runs go, and where they come from if they were stopped."""

    output: Path | None
    log_file: Path | None
    resume: Path | None
    force: bool
    as_json: bool

    def check(self) -> None:
        """Refuse an output that exists, before anything is measured.

        Raises:
            OutputError: It does, and may not be replaced.
        """
        from edgelm.errors import OutputError

        if self.output is not None and self.output.exists() and not self.force:
            raise OutputError(f"{self.output} exists already. Choose another name, or replace it with --force.")

    def earlier(self) -> list[AnyRun]:
        """Return the runs of the last session in the file to resume.

        Raises:
            InputError: There is no such file, or no run in it.
        """
        from edgelm.bench import log
        from edgelm.cli.output import complain

        if self.resume is None:
            return []
        runs = log.read_all([self.resume], warn=complain)
        return [run for run in runs if run.session == runs[-1].session]

    def write_down(self, runs: list[Any]) -> None:
        """Write what there is so far to the output: a run that ends without a word leaves it there."""
        from edgelm.bench import log

        if self.output is not None:
            log.write(runs, self.output, force=True)

    def write(self, runs: list[Any]) -> None:
        """Write the runs to the output and the log.

        Raises:
            OutputError: One cannot be written.
        """
        from edgelm.bench import log

        self.write_down(runs)
        if self.log_file is not None:
            for run in runs:
                log.append(run, self.log_file)


def protocol_options(command: _Command) -> _Command:
    """Add the options of `Protocol`."""
    for decorate in (
        click.option("--seed", type=click.IntRange(0), help="Of the order of turns and of arrivals; drawn without it."),
        click.option("--model-energy", is_flag=True, help="Also say what the profile's power makes of the times."),
        click.option("--energy-seconds", type=_POSITIVE, help="Of each energy window; the sensor decides without it."),
        click.option(
            "--meter", help="auto, none, a meter of edgelm doctor, csv:FILE or lines:PORT; auto except in quick mode."
        ),
        click.option("--seconds", type=_POSITIVE, help="Stop after so long of each."),
        click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime."),
        click.option("--profile", help="The device that the numbers are for; the detected one otherwise."),
        click.option(
            "--runtime", "runtimes", multiple=True, help="litert, tflite or onnx; may be given several times."
        ),
        click.option(
            "--mode", help="quick, standard, sustained, mlperf or realtime; standard, and realtime with --rate."
        ),
    ):
        command = decorate(command)
    return command


def result_options(command: _Command) -> _Command:
    """Add the options of `Results`."""
    for decorate in (
        click.option("--force", is_flag=True, help="Replace the output if it exists."),
        click.option("--resume", type=FILE, help="Go on with the runs in this file, which were stopped."),
        click.option("--log", "log_file", type=FILE, help="Append a line for each run to this JSONL log."),
        click.option("-o", "--output", type=FILE, help="Write the runs, with every sample, to RUN.json."),
    ):
        command = decorate(command)
    return command
