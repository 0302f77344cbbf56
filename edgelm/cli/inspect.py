"""``edgelm inspect``, ``edgelm verify`` and ``edgelm pack``: looking into a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgelm.bundle import open_bundle
from edgelm.bundle import pack as pack_bundle
from edgelm.cli.describe import artifact_rows, manifest_rows, verify_rows
from edgelm.cli.output import json_option, print_json, table
from edgelm.errors import IntegrityError

__all__ = ["inspect", "pack", "verify"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_FILE)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds, how it was made and what that cost. Every file's checksum is checked."""
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    if as_json:
        print_json(asdict(manifest))
        return
    table(manifest_rows(manifest))
    for artifact in manifest.artifacts:
        click.echo("")
        table(artifact_rows(artifact))


@click.command()
@click.argument("bundle", type=_FILE)
@click.option("--runtime", help="Only this runtime; all that are installed otherwise.")
@click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime.")
@json_option
def verify(bundle: Path, runtime: str | None, threads: int | None, as_json: bool) -> None:
    """Check BUNDLE on this device: its files, its tokenizer and its numbers, against the golden vectors in it."""
    from edgelm_runtimes import verify as verify_bundle

    report = verify_bundle(bundle, runtime=runtime, threads=threads)
    if as_json:
        print_json(asdict(report))
    else:
        table(verify_rows(report))
    if not report.passed:
        raise IntegrityError(f"{report.bundle} does not give the answers that it was made with: do not use it here.")


@click.command()
@click.argument("bundle", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The file to write: NAME.edgelm.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def pack(bundle: Path, output: Path, force: bool) -> None:
    """Make one file of a BUNDLE folder, for transport. Every command opens it as it is."""
    click.echo(pack_bundle(bundle, output, force=force))
