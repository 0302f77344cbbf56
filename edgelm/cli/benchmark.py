"""``edgelm benchmark``; language models are measured by `edgelm.cli.benchmark_generation`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.benchmark_generation import (
    GenerationAmounts,
    generates,
    generation_options,
    print_generation,
    run_generation,
)
from edgelm.cli.benchmark_options import FILE, Protocol, Results, protocol_options, result_options
from edgelm.cli.benchmark_remote import measure_on
from edgelm.cli.benchmark_table import milliseconds, print_findings
from edgelm.cli.output import json_option, print_json, progress_bar, size, table

if TYPE_CHECKING:
    from edgelm.bench import Run
    from edgelm.bench.findings import Arrivals
    from edgelm.bench.log import AnyRun

__all__ = ["benchmark"]

_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=FILE)
@protocol_options
@click.option("--on", metavar="HOST", help="Measure on a device: user@host, or adb: for a phone. See edgelm deploy.")
@click.option("--ssh-config", type=FILE, help="With --on: a file instead of ~/.ssh/config.")
@click.option("--queries", type=click.IntRange(1), help="Stop after so many of each.")
@click.option("--deadline-ms", type=_POSITIVE, help="Report the share within this time.")
@click.option("--rate", type=_POSITIVE, help="Real time: so many queries arrive a second.")
@click.option(
    "--arrivals", type=click.Choice(["poisson", "fixed"]), default="poisson", show_default=True, help="How they arrive."
)
@click.option("--texts", type=FILE, help="Inputs, cycled through: csv with a text column, or a text a line.")
@result_options
@generation_options
@json_option
def benchmark(
    bundles: tuple[Path, ...],
    on: str | None,
    ssh_config: Path | None,
    mode: str | None,
    runtimes: tuple[str, ...],
    profile: str | None,
    threads: int | None,
    queries: int | None,
    seconds: float | None,
    deadline_ms: float | None,
    rate: float | None,
    arrivals: Arrivals,
    texts: Path | None,
    meter: str | None,
    energy_seconds: float | None,
    model_energy: bool,
    seed: int | None,
    output: Path | None,
    log_file: Path | None,
    resume: Path | None,
    force: bool,
    prefill_tokens: int | None,
    decode_tokens: int | None,
    depths: tuple[int, ...],
    repetitions: int | None,
    as_json: bool,
) -> None:
    """Measure each of BUNDLES on this machine, in turns: latency, load time, memory, size, energy.

    Language models are measured by the tokens that they read and write a second, with -p, -d, --depth and -r.
    """
    from edgelm.errors import InputError

    results = Results(output=output, log_file=log_file, resume=resume, force=force, as_json=as_json)
    results.check()
    if on is not None:
        _print(measure_on(on, bundles, results, ssh_config=ssh_config), quiet=as_json)
        return
    protocol = Protocol(
        mode=mode or ("standard" if rate is None else "realtime"),
        runtime=runtimes or None,
        profile=profile,
        threads=threads,
        seconds=seconds,
        meter=meter,
        energy_seconds=energy_seconds,
        model_energy=model_energy,
        seed=seed,
    )
    amounts = GenerationAmounts(prefill_tokens, decode_tokens, depths, repetitions)
    if generates(bundles):
        timed = seconds is not None and mode != "sustained"
        if timed or any(value is not None for value in (queries, deadline_ms, rate, texts)):
            raise InputError("Language models are measured with -p, -d, --depth and -r; other amounts do not fit them.")
        run_generation(bundles, protocol, amounts, results)
        return
    if amounts.given:
        raise InputError("-p, -d, --depth and -r are for language models, and this bundle is none.")
    _run(
        bundles,
        protocol,
        results,
        queries=queries,
        deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
        rate_per_s=rate,
        arrivals=arrivals,
        texts=None if texts is None else _read_texts(texts),
    )


def _run(bundles: Sequence[Path], protocol: Protocol, results: Results, **amounts: Any) -> None:
    """Measure, print, and write: in this order, so that a disk that is full does not cost the figures."""
    from edgelm import bench
    from edgelm.bench.output import reserved

    earlier = [run for run in results.earlier() if isinstance(run, bench.Run)]
    with progress_bar(quiet=results.as_json) as progress, reserved(results.output or results.log_file):
        runs = bench.benchmark(
            bundles,
            **protocol.arguments(),
            **amounts,
            resume=earlier,
            progress=progress,
            checkpoint=results.write_down,
        )
    if results.as_json:
        print_json([run.to_dict() for run in runs])
    else:
        _print_runs(runs)
    results.write(runs)


def _print(runs: Sequence[AnyRun], *, quiet: bool) -> None:
    """Print runs of either kind."""
    from edgelm import bench

    answering = [run for run in runs if isinstance(run, bench.Run)]
    generating = [run for run in runs if isinstance(run, bench.GenerationRun)]
    if quiet:
        return
    if answering:
        _print_runs(answering)
    if generating:
        print_generation(generating)


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
    print_findings(runs)
