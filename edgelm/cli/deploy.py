"""``edgelm deploy``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.bench.output import write_text
from edgelm.cli.output import complain, json_option, print_json, progress_bar, size, table
from edgelm.errors import InputError, OutputError

if TYPE_CHECKING:
    from edgelm.deploy import Deployed

__all__ = ["deploy"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_FILE)
@click.argument("host")
@click.argument("arguments", nargs=-1)
@click.option("--no-verify", is_flag=True, help="Check the files' checksums there, and leave its answers unchecked.")
@click.option("--edgelm", help="The program on the device, such as ~/venv/bin/edgelm; looked for otherwise.")
@click.option("--ssh-config", type=click.Path(exists=True, path_type=Path), help="A file instead of ~/.ssh/config.")
@click.option("--benchmark", "measure", is_flag=True, help="Measure it there; ARGUMENTS after -- are the benchmark's.")
@click.option("-o", "--output", type=_FILE, help="With --benchmark: write the runs to RUN.json here.")
@click.option("--force", is_flag=True, help="Replace another bundle of that name there, and the output here.")
@json_option
def deploy(
    bundle: Path,
    host: str,
    arguments: tuple[str, ...],
    no_verify: bool,
    edgelm: str | None,
    ssh_config: Path | None,
    measure: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Copy BUNDLE to HOST, check it there, and put it into place.

    \b
    HOST is a board, user@host, user@host:folder or ssh://user@host:port/folder, or a phone, adb: or adb:SERIAL.
    edgelm deploy intents.edgelm pi@raspberrypi.local
    edgelm deploy intents.edgelm pi@raspberrypi.local --benchmark -o run.json -- --seconds 10
    """  # noqa: D301 - click wants the control character itself
    from edgelm import deploy as deploying

    _check_options(arguments, output, measure=measure, force=force, as_json=as_json)
    with progress_bar(quiet=as_json) as progress:
        options: dict[str, Any] = {
            "force": force, "verify": not no_verify, "edgelm": edgelm, "ssh_config": ssh_config, "progress": progress
        }  # fmt: skip
        runs = deploying.benchmark_on(bundle, host, arguments=arguments, **options) if measure else None
        deployed = None if measure else deploying.deploy(bundle, host, **options)
    if runs is not None:
        _give_runs(runs, output, force=force, as_json=as_json)
    if deployed is not None:
        _show(deployed, as_json=as_json)


def _check_options(
    arguments: tuple[str, ...], output: Path | None, *, measure: bool, force: bool, as_json: bool
) -> None:
    """Refuse what says nothing without the other, before the device is reached."""
    if not measure and (arguments or output is not None):
        raise InputError("--output and arguments after -- are for the benchmark: give --benchmark with them.")
    if measure and output is None and not as_json:
        raise InputError("Where shall the runs go? Name a file with -o run.json, or print them with --json.")
    if output is not None and output.exists() and not force:
        raise OutputError(f"{output} exists already. Choose another name, or replace it with --force.")


def _give_runs(runs: list[dict[str, Any]], output: Path | None, *, force: bool, as_json: bool) -> None:
    if output is not None:
        text = json.dumps(runs[0] if len(runs) == 1 else runs, ensure_ascii=False, separators=(",", ":"))
        write_text(f"{text}\n", output, force=force)
    if as_json:
        print_json(runs)
    else:
        click.echo(output)


def _show(deployed: Deployed, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(deployed))
    else:
        how = "copied" if deployed.copied else "was there already"
        rows = [
            ("bundle", f"{deployed.path} on {deployed.device} ({deployed.machine})"),
            ("files", f"{size(deployed.size_bytes)}, {how}, every SHA-256 right"),
        ]
        if deployed.report is not None:
            rows += [(check["runtime"], f"{check['status']}{_version(check)}") for check in deployed.report["runtimes"]]
        table(rows)
    if deployed.unverified is not None:
        complain(deployed.unverified)
        # A phone cannot do more; a board without edgelm cannot run the bundle either.
        if not deployed.device.startswith("adb:"):
            raise click.exceptions.Exit(1)


def _version(check: dict[str, Any]) -> str:
    return f" ({check['version']})" if check["version"] else ""
