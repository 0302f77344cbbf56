"""``edgelm benchmark --on HOST``: the same command on a device, its runs brought back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edgelm.cli.benchmark_options import Results
from edgelm.cli.output import complain, print_json, progress_bar
from edgelm.errors import InputError

if TYPE_CHECKING:
    from edgelm.bench.log import AnyRun

__all__ = ["forwarded", "measure_on"]

_HERE = frozenset(("bundles", "on", "ssh_config", "output", "log_file", "force", "as_json"))
_NOT_THERE = {"resume": "--resume", "texts": "--texts"}  # name files of this machine


def forwarded(context: click.Context) -> list[str]:
    """Return the options that were given, as the command on the device takes them.

    Raises:
        InputError: One names a file of this machine.
    """
    arguments: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if name in _HERE or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if name in _NOT_THERE:
            raise InputError(
                f"{_NOT_THERE[name]} names a file of this machine, and --on measures on another: leave it out."
            )
        value, spelled = context.params[name], option.opts[-1]
        if isinstance(value, bool):
            arguments.append(spelled)
            continue
        for item in value if isinstance(value, tuple) else (value,):
            arguments += [spelled, str(item)]
    return arguments


def measure_on(host: str, bundles: Sequence[Path], results: Results, *, ssh_config: Path | None) -> list[AnyRun]:
    """Measure one bundle on a device with the options of the current command, and write the runs.

    Raises:
        InputError: There are several bundles, or an option names a file of this machine.
        DeviceError: The device cannot be reached, lacks edgelm, or fails.
    """
    from edgelm.bench import log
    from edgelm.deploy import benchmark_on

    if len(bundles) != 1:
        raise InputError(
            f"--on measures one bundle, and {len(bundles)} were given: name them in commands of their own."
        )
    arguments = forwarded(click.get_current_context())
    with progress_bar(quiet=results.as_json) as progress:
        found = benchmark_on(bundles[0], host, arguments=arguments, ssh_config=ssh_config, progress=progress)
    runs = log.of_values(found)
    results.write(runs)
    if results.as_json:
        print_json(found)
    else:
        complain(f"measured on {host}")
    return runs
