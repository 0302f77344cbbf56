"""``edgelm benchmark``; language models are measured by `edgelm.cli.benchmark_generation`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgelm.cli.benchmark_generation import GenerationAmounts, generates, generation_options, run_generation
from edgelm.cli.output import complain, json_option, print_json, progress_bar, size, table

if TYPE_CHECKING:
    from edgelm.bench import Run

__all__ = ["benchmark"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=_FILE)
@click.option("--runtime", "runtimes", multiple=True, help="litert, tflite or onnx; may be given several times.")
@click.option("--profile", help="The device that the numbers are for; the detected one otherwise.")
@click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime.")
@click.option("--queries", type=click.IntRange(1), help="Stop after so many of each.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after so long of each.")
@click.option("--deadline-ms", type=click.FloatRange(0, min_open=True), help="Report the share within this time.")
@click.option("--texts", type=_FILE, help="Inputs, cycled through: csv with a text column, or a text a line.")
@click.option("-o", "--output", type=_FILE, help="Write the runs, with every sample, to RUN.json.")
@click.option("--log", "log_file", type=_FILE, help="Append a line for each run to this JSONL log.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@generation_options
@json_option
def benchmark(
    bundles: tuple[Path, ...],
    runtimes: tuple[str, ...],
    profile: str | None,
    threads: int | None,
    queries: int | None,
    seconds: float | None,
    deadline_ms: float | None,
    texts: Path | None,
    output: Path | None,
    log_file: Path | None,
    force: bool,
    prefill_tokens: int | None,
    decode_tokens: int | None,
    depths: tuple[int, ...],
    repetitions: int | None,
    as_json: bool,
) -> None:
    """Measure each of BUNDLES on this machine, in turns: latency, load time, memory, size.

    Language models are measured by the tokens that they read and write a second, with -p, -d, --depth and -r.
    """
    from edgelm import bench
    from edgelm.errors import InputError, OutputError

    if output is not None and output.exists() and not force:
        raise OutputError(f"{output} exists already. Choose another name, or replace it with --force.")
    amounts = GenerationAmounts(prefill_tokens, decode_tokens, depths, repetitions)
    if generates(bundles):
        if any(value is not None for value in (queries, seconds, deadline_ms, texts, log_file)):
            raise InputError("Language models are measured with -p, -d, --depth and -r; other amounts do not fit them.")
        run_generation(bundles, runtimes, profile, threads, amounts, output, force=force, as_json=as_json)
        return
    if amounts.given:
        raise InputError("-p, -d, --depth and -r are for language models, and this bundle is none.")
    with progress_bar(quiet=as_json) as progress:
        runs = bench.benchmark(
            bundles,
            runtime=runtimes or None,
            profile=profile,
            threads=threads,
            queries=queries,
            seconds=seconds,
            deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
            texts=None if texts is None else _read_texts(texts),
            progress=progress,
        )
    if output is not None:
        bench.log.write(runs, output, force=force)
    if log_file is not None:
        for run in runs:
            bench.log.append(run, log_file)
    if as_json:
        print_json([run.to_dict() for run in runs])
    else:
        _print_runs(runs)


def _read_texts(path: Path) -> Sequence[str]:
    """Read one text a line, or the text column of a CSV file, without the conversion tools."""
    import csv

    from edgelm.errors import InputError

    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            if path.suffix.lower() != ".csv":
                return [line.rstrip("\r\n") for line in stream if line.strip()]
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The texts in {path} cannot be read: {error}.") from error
    if not rows or "text" not in rows[0]:
        raise InputError(f"{path} has no column called 'text', or no rows.")
    return [row["text"] for row in rows if row["text"]]


def _print_runs(runs: Sequence[Run]) -> None:
    def milliseconds(value: float | None) -> str:
        return "—" if value is None else f"{value * 1e3:.3f}"

    rows = []
    for run in runs:
        r = run.results
        rows.append(
            (
                run.bundle.name,
                f"{run.runtime.runtime} {run.runtime.runtime_version}, {run.runtime.threads} threads",
                *map(milliseconds, (r.p50_s, r.p90_s, r.p99_s, r.tokenize_p50_s)),
                f"{r.throughput_per_s:,.0f}",
                milliseconds(r.load_s),
                milliseconds(r.first_inference_s),
                "—" if r.peak_memory_bytes is None else size(r.peak_memory_bytes),
                size(run.bundle.size_bytes),
                "—" if r.deadline_hit_rate is None else f"{r.deadline_hit_rate:.1%}",
            )
        )
    header = (
        "bundle",
        "runtime",
        "p50 ms",
        "p90",
        "p99",
        "tokenize",
        "per s",
        "load ms",
        "first",
        "memory",
        "model",
        "deadline",
    )
    table(rows, header)
    click.echo(
        f"energy: {runs[0].energy.method} ({'; '.join(runs[0].energy.notes)})" if runs else "nothing was measured"
    )
    for statement in dict.fromkeys(run.profile.statement for run in runs if run.profile and not run.profile.match):
        complain(statement)
