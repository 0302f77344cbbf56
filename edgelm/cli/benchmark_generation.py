"""``edgelm benchmark`` of language models: tokens a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgelm.cli.benchmark_options import Protocol, Results
from edgelm.cli.benchmark_table import milliseconds, print_findings
from edgelm.cli.output import print_json, progress_bar, size, table

if TYPE_CHECKING:
    from edgelm.bench import GenerationRun

__all__ = ["GenerationAmounts", "generates", "generation_options", "print_generation", "run_generation"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PREFILL_TOKENS, _DECODE_TOKENS = 512, 128


@dataclass(frozen=True)
class GenerationAmounts:
    """How much was asked for; None and () leave it to edgelm."""

    prefill_tokens: int | None
    decode_tokens: int | None
    depths: tuple[int, ...]
    repetitions: int | None

    @property
    def given(self) -> bool:
        """Whether anything was."""
        return bool(self.depths) or any(
            value is not None for value in (self.prefill_tokens, self.decode_tokens, self.repetitions)
        )


def generation_options(command: _Command) -> _Command:
    """Add ``-p``, ``-d``, ``--depth`` and ``-r``."""
    one = click.IntRange(1)
    for decorate in (
        click.option("-r", "--repetitions", type=one, help="Language models: of each. 10 without it, 5 in quick mode."),
        click.option(
            "--depth", "depths", multiple=True, type=click.IntRange(0), help="Positions in the cache before; several."
        ),
        click.option(
            "-d", "--decode-tokens", type=click.IntRange(2), help=f"Tokens to write. {_DECODE_TOKENS} without it."
        ),
        click.option("-p", "--prefill-tokens", type=one, help=f"Tokens of the prompt. {_PREFILL_TOKENS} without it."),
    ):
        command = decorate(command)
    return command


def generates(bundles: Sequence[Path]) -> bool:
    """Return whether the bundles are language models.

    Raises:
        InputError: Some are and some are not.
    """
    from edgelm.bundle import open_bundle
    from edgelm.errors import InputError

    tasks = set()
    for path in bundles:
        with open_bundle(path) as bundle:
            tasks.add(bundle.manifest.task)
    if "generate" in tasks and len(tasks) > 1:
        raise InputError("Language models and other bundles are measured differently: name them in two commands.")
    return "generate" in tasks


def run_generation(bundles: Sequence[Path], protocol: Protocol, amounts: GenerationAmounts, results: Results) -> None:
    """Measure language models, print the runs or a table, and write the runs."""
    from edgelm import bench
    from edgelm.bench.output import reserved

    earlier = [run for run in results.earlier() if isinstance(run, bench.GenerationRun)]
    with progress_bar(quiet=results.as_json) as progress, reserved(results.output or results.log_file):
        runs = bench.benchmark_generation(
            bundles,
            **protocol.arguments(),
            prefill_tokens=amounts.prefill_tokens or _PREFILL_TOKENS,
            decode_tokens=amounts.decode_tokens or _DECODE_TOKENS,
            depths=amounts.depths or (0,),
            repetitions=amounts.repetitions,
            resume=earlier,
            progress=progress,
            checkpoint=results.write_down,
        )
    if results.as_json:
        print_json([run.to_dict() for run in runs])
    else:
        print_generation(runs)
    results.write(runs)


def print_generation(runs: Sequence[GenerationRun]) -> None:
    """Print runs of language models as a table."""
    table([_row(run) for run in runs], _HEADER)
    print_findings(runs)


_HEADER = (
    "bundle", "runtime", "depth", "TTFT ms", "prefill tok/s", "decode tok/s", "token p50 ms", "p90", "p99", "load ms",
    "memory", "model",
)  # fmt: skip


def _row(run: GenerationRun) -> tuple[str, ...]:
    r = run.results

    return (
        f"{run.bundle.name} ({run.bundle.recipe})",
        f"{run.runtime.runtime} {run.runtime.runtime_version}, {run.runtime.threads} threads",
        str(run.settings.depth),
        milliseconds(r.ttft_s, 2),
        f"{r.prefill_tokens_per_s:,.0f}",
        f"{r.decode_tokens_per_s:,.1f}",
        *(
            milliseconds(value, 2)
            for value in (r.inter_token_p50_s, r.inter_token_p90_s, r.inter_token_p99_s, r.load_s)
        ),
        "—" if r.peak_memory_bytes is None else size(r.peak_memory_bytes),
        size(run.bundle.size_bytes),
    )
