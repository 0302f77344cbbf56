"""``edgelm runs``: what has been measured, from a log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.output import complain, json_option, print_json, table

if TYPE_CHECKING:
    from edgelm.bench.log import AnyRun

__all__ = ["runs"]

_FILE = click.Path(path_type=Path)
_LOG = click.option("--log", "log_file", type=_FILE, help="The log; $XDG_DATA_HOME/edgelm/runs.jsonl without it.")


@click.group()
def runs() -> None:
    """List, show and export the runs of a log, as `edgelm benchmark --log` writes it."""


@runs.command("list")
@_LOG
@click.option("--bundle", help="Only of bundles whose name holds this.")
@click.option("--last", type=click.IntRange(1), help="Only the last so many.")
@json_option
def list_runs(log_file: Path | None, bundle: str | None, last: int | None, as_json: bool) -> None:
    """List runs, the oldest first."""
    from edgelm.bench import log
    from edgelm.bench.export import row_of

    found = log.heads(log_file or log.default_log(), warn=complain)
    rows = [row_of(head) for head in found if bundle is None or bundle in head["bundle"]["name"]]
    rows = rows if last is None else rows[-last:]
    if as_json:
        print_json(rows)
    elif rows:
        table([_line(row) for row in rows], ("id", "started", "bundle", "runtime", "mode", "p50", "energy", "state"))
    else:
        complain("there is no such run in the log.")


@runs.command()
@_LOG
@click.argument("run_id", metavar="ID")
@json_option
def show(log_file: Path | None, run_id: str, as_json: bool) -> None:
    """Show all that is known of the run whose id begins with ID, but for its samples."""
    from edgelm.bench import log

    head = log.find(log_file or log.default_log(), run_id, warn=complain)
    if as_json:
        print_json(head)
    else:
        table(_flat(head))


@runs.command()
@_LOG
@click.argument("run_ids", metavar="[ID]...", nargs=-1)
@click.option("--format", "name", default="csv", show_default=True, help="csv, json, llama-bench or mlperf.")
@click.option("-o", "--output", type=_FILE, help="Write it to this file instead of stdout.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def export(log_file: Path | None, run_ids: tuple[str, ...], name: str, output: Path | None, force: bool) -> None:
    """Write runs in another format: those whose ids begin with one of ID, or all."""
    from edgelm.bench.export import export as exported
    from edgelm.bench.output import write_text

    text = exported(_chosen(log_file, run_ids), name)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(text, output, force=force)
        click.echo(output)


def _chosen(log_file: Path | None, run_ids: Sequence[str]) -> list[AnyRun]:
    from edgelm.bench import log

    path = log_file or log.default_log()
    wanted = {log.find(path, run_id, warn=complain)["id"] for run_id in run_ids}
    return [run for run in log.read_all([path], warn=complain) if not wanted or run.id in wanted]


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    time_s = row["p50_s"]
    speed = "—" if time_s is None else f"{time_s * 1e3:.3f} ms"
    if row["decode_tokens_per_s"] is not None:
        speed = f"{row['decode_tokens_per_s']:,.1f} tok/s"
    energy = row["energy_method"] if row["per_inference_j"] is None else f"{row['per_inference_j'] * 1e3:.3g} mJ"
    state = "stopped" if row["stopped"] is not None else row["evidence"]
    runtime = f"{row['runtime']} {row['runtime_version']}, {row['threads']} threads"
    return row["id"], row["started"], row["bundle"], runtime, row["mode"] or "—", speed, energy, state


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return a nested value as lines of a name and a value."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _flat(item, f"{name}.{key}" if name else key)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [line for index, item in enumerate(value) for line in _flat(item, f"{name}[{index}]")]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)) or "—")]
    return [(name, "—" if value is None or value == {} else str(value))]
