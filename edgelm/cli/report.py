"""``edgelm report``."""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.cli.output import complain, json_option, print_json

__all__ = ["report"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, type=_FILE)
@click.option("--all", "all_runs", is_flag=True, help="Every run of your log, beside RUNS.")
@click.option("-o", "--output", type=_FILE, help="report.html, report.md or report.json.")
@click.option(
    "--check", "asked", metavar="EXPRESSION", help='Fail unless every run keeps it: "p90 < 20ms and size < 6MiB".'
)
@click.option("--battery-wh", type=click.FloatRange(0, min_open=True), help="The devices' battery, in watt hours.")
@click.option("--force", is_flag=True, help="Replace the report if it exists.")
@json_option
def report(
    runs: tuple[Path, ...],
    all_runs: bool,
    output: Path | None,
    asked: str | None,
    battery_wh: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare RUNS on one page, or check them.

    RUNS are files of `edgelm benchmark -o` or its log; and, marked with their source, `llama-bench -o json`, the output of
    LiteRT's benchmark_model, and a perf.yaml of Qualcomm AI Hub.
    """
    from edgelm import report as reports
    from edgelm.bench import log
    from edgelm.errors import EdgelmError, InputError

    if not runs and not all_runs:
        raise click.UsageError("Name files of runs, or take every run of your log with --all.")
    if output is None and asked is None and not as_json:
        raise click.UsageError("Say where the report goes with -o report.html, or what to check with --check.")
    try:
        expression = None if asked is None else reports.parse(asked)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--check") from error
    if output is not None:
        reports.check_output(output, force=force)
    results = reports.read_results([*runs, *([log.default_log()] if all_runs else [])], warn=complain)
    if output is not None:
        reports.write(results, output, battery_wh=battery_wh, force=force)
        if not as_json:
            click.echo(str(output))
    if expression is None:
        if as_json:
            print_json(reports.report_values(results, battery_wh=battery_wh))
        return
    checked = reports.check(results, expression, battery_wh=battery_wh)
    if as_json:
        print_json([each.to_dict() for each in checked])
    else:
        click.echo("\n".join(each.line for each in checked))
    failed = sum(not each.passed for each in checked)
    if failed:
        raise EdgelmError(f"{failed} of {len(checked)} runs do not keep '{expression.text}'.")
