"""``edgelm inspect``, ``edgelm verify`` and ``edgelm pack``: looking into a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgelm.bench.output import write_text
from edgelm.bundle import GateRecord, Manifest, open_bundle
from edgelm.bundle import pack as pack_bundle
from edgelm.cli.describe import artifact_rows, manifest_rows, verify_rows
from edgelm.cli.output import json_option, print_json, table
from edgelm.cli.placement import SHARE, show_placement
from edgelm.errors import InputError, IntegrityError
from edgelm.report.ranking import kept_parts, ranking_rows, ranking_svg

__all__ = ["inspect", "pack", "verify"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_FILE)
@click.option("--sensitivity", is_flag=True, help="Rank the parts of the model by what compressing each alone costs.")
@click.option("-o", "--output", type=_FILE, help="With --sensitivity: write the ranking as a picture, NAME.svg.")
@click.option("--force", is_flag=True, help="Replace a picture that exists.")
@click.option("--device", help="Show what runs there: gpu, edgetpu, edgetpu:usb:0 or delegate:LIBRARY.")
@click.option("--runtime", help="With --device: litert or tflite.")
@click.option(
    "--require-placement", "required", type=SHARE, help="With --device: fail where less runs there, such as 95%."
)
@json_option
def inspect(
    bundle: Path,
    sensitivity: bool,
    output: Path | None,
    force: bool,
    device: str | None,
    runtime: str | None,
    required: float | None,
    as_json: bool,
) -> None:
    """Show what BUNDLE holds, how it was made and what that cost. Every file's checksum is checked.

    With --device, show instead how many of its operators run there.
    """
    if device is not None:
        show_placement(bundle, runtime, device, required, as_json=as_json)
        return
    if runtime is not None or required is not None:
        raise InputError("--runtime and --require-placement are about a device: name it with --device.")
    if output is not None and not sensitivity:
        raise InputError("--output is for the picture of a ranking: give --sensitivity with it.")
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    if sensitivity:
        _show_ranking(manifest, output, force=force, as_json=as_json)
        return
    if as_json:
        print_json(asdict(manifest))
        return
    table(manifest_rows(manifest))
    for artifact in manifest.artifacts:
        click.echo("")
        table(artifact_rows(artifact))


def _show_ranking(manifest: Manifest, output: Path | None, *, force: bool, as_json: bool) -> None:
    """Show what each part of the model costs, as a table with bars and as a picture."""
    gates: dict[str, GateRecord | None] = {artifact.format: artifact.gate for artifact in manifest.artifacts}
    ranked = {name: gate for name, gate in gates.items() if gate is not None and gate.ranking}
    if not ranked:
        raise InputError(
            f"{manifest.name} holds no ranking of its parts: convert it again with --metric, --max-drop, --validation and "
            "--sensitivity."
        )
    if as_json:
        print_json({name: gate.ranking for name, gate in ranked.items()})
        return
    language = manifest.task == "generate"
    what = "divergence from Keras, nats a token" if language else "error, share of the largest output"
    for name, gate in ranked.items():
        click.echo(f"{name}, {manifest.recipe}: {what}, where a part alone is compressed; * is kept in more bits")
        table(ranking_rows(gate.ranking, kept_parts(gate)))
    if output is not None:
        write_text(ranking_svg(ranked, title=f"{manifest.name}, {manifest.recipe}: {what}"), output, force=force)
        click.echo(output)


@click.command()
@click.argument("bundle", type=_FILE)
@click.option("--runtime", help="Only this runtime; all that are installed otherwise.")
@click.option(
    "--device", default="cpu", show_default=True, help="cpu, gpu, edgetpu, or delegate:LIBRARY; with --runtime."
)
@click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime.")
@json_option
def verify(bundle: Path, runtime: str | None, device: str, threads: int | None, as_json: bool) -> None:
    """Check BUNDLE on this device: its files, its tokenizer and its numbers, against the golden vectors in it."""
    from edgelm_runtimes import verify as verify_bundle

    report = verify_bundle(bundle, runtime=runtime, device=device, threads=threads)
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
