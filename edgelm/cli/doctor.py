"""``edgelm doctor``: what can run on this machine, and what can be measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.output import json_option, print_json, table

if TYPE_CHECKING:
    from edgelm.meters import Found

__all__ = ["doctor"]


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what can run here and be measured: the machine, its profile, runtimes, energy meters, and how to get more."""
    from edgelm_device_profiles import detect as detect_device
    from edgelm_runtimes.device import device_states
    from edgelm_runtimes.machine import machine_facts
    from edgelm_runtimes.registry import available

    from edgelm.meters import find_meters

    facts, detection, states, meters = machine_facts(), detect_device(), available(), find_meters()
    if as_json:
        runtimes = [asdict(state) for state in states]
        found = [_meter(meter) for meter in meters]
        devices = [asdict(state) for state in device_states()]
        print_json(
            {
                "machine": facts.to_dict(),
                "detection": detection.to_dict(),
                "runtimes": runtimes,
                "devices": devices,
                "meters": found,
            }
        )
        return
    usable = f", {len(facts.usable_cores)} of them for this process" if facts.usable_cores is not None else ""
    cores = f"{facts.logical_cores or 'unknown number of'} cores{usable}"
    table(
        [
            ("machine", f"{facts.cpu_model}, {facts.architecture}, {cores}"),
            ("profile", detection.profile or "none fits"),
        ]
    )
    click.echo("\nruntimes")
    table([(f"  {s.runtime}", f"usable, {s.version}" if s.usable else f"not usable: {s.advice}") for s in states])
    click.echo("\ndevices")
    table([(f"  {s.device}", f"{'ready' if s.ready else 'not ready'}: {s.why}") for s in device_states()])
    click.echo("\nenergy meters")
    _print_meters(meters)


def _print_meters(meters: Sequence[Found]) -> None:
    for meter in meters:
        click.echo(f"  {meter.name}: {meter.state} ({meter.why})")
        if meter.fix is not None:
            click.echo(f"    to get it: {meter.fix}")
    if not any(meter.state == "usable" for meter in meters):
        click.echo("  No meter can be read, so energy is not measured here.")


def _meter(found: Found) -> dict[str, Any]:
    facts = None if found.meter is None else asdict(found.meter.facts)
    return {"name": found.name, "state": found.state, "why": found.why, "fix": found.fix, "facts": facts}
