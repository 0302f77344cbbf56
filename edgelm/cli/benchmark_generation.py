"""``edgelm benchmark`` of language models: tokens a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgelm.cli.output import complain, print_json, progress_bar, size, table

if TYPE_CHECKING:
    from edgelm.bench import GenerationRun

__all__ = ["GenerationAmounts", "generates", "generation_options", "run_generation"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PREFILL_TOKENS, _DECODE_TOKENS, _REPETITIONS = 512, 128, 5


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
        click.option("-r", "--repetitions", type=one, help=f"Language models: of each. {_REPETITIONS} without it."),
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


def run_generation(
    bundles: Sequence[Path],
    runtimes: Sequence[str],
    profile: str | None,
    threads: int | None,
    amounts: GenerationAmounts,
    output: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Measure language models, write the runs to `output`, and print llama-bench's rows or a table."""
    from edgelm import bench

    with progress_bar(quiet=as_json) as progress:
        runs = bench.benchmark_generation(
            bundles,
            runtime=runtimes or None,
            profile=profile,
            threads=threads,
            prefill_tokens=amounts.prefill_tokens or _PREFILL_TOKENS,
            decode_tokens=amounts.decode_tokens or _DECODE_TOKENS,
            depths=amounts.depths or (0,),
            repetitions=amounts.repetitions or _REPETITIONS,
            progress=progress,
        )
    if output is not None:
        bench.log.write(runs, output, force=force)
    if as_json:
        print_json([row for run in runs for row in run.llama_bench_rows()])
        return
    table([_row(run) for run in runs], _HEADER)
    click.echo(f"energy: {runs[0].energy.method} ({'; '.join(runs[0].energy.notes)})")
    for statement in dict.fromkeys(run.profile.statement for run in runs if run.profile and not run.profile.match):
        complain(statement)


_HEADER = (
    "bundle", "runtime", "depth", "TTFT ms", "prefill tok/s", "decode tok/s", "token p50 ms", "p90", "p99", "load ms",
    "memory", "model",
)  # fmt: skip


def _row(run: GenerationRun) -> tuple[str, ...]:
    r = run.results

    def milliseconds(value: float | None) -> str:
        return "—" if value is None else f"{value * 1e3:.2f}"

    return (
        f"{run.bundle.name} ({run.bundle.recipe})",
        f"{run.runtime.runtime} {run.runtime.runtime_version}, {run.runtime.threads} threads",
        str(run.settings.depth),
        milliseconds(r.ttft_s),
        f"{r.prefill_tokens_per_s:,.0f}",
        f"{r.decode_tokens_per_s:,.1f}",
        *map(milliseconds, (r.inter_token_p50_s, r.inter_token_p90_s, r.inter_token_p99_s, r.load_s)),
        "—" if r.peak_memory_bytes is None else size(r.peak_memory_bytes),
        size(run.bundle.size_bytes),
    )
