"""``edgelm report``."""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.cli.output import complain

__all__ = ["report"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="report.html or report.md.")
@click.option("--force", is_flag=True, help="Replace the report if it exists.")
def report(runs: tuple[Path, ...], output: Path, force: bool) -> None:
    """Compare RUNS (files of `edgelm benchmark -o`, or a JSONL log) on one page."""
    from edgelm import bench
    from edgelm import report as reports

    reports.write(bench.log.read(runs, warn=complain), output, force=force)
    click.echo(str(output))
