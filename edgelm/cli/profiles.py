"""``edgelm profiles`` and ``edgelm doctor``: what is known of devices, and of this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from edgelm.cli.output import json_option, print_json, table

__all__ = ["doctor", "profiles"]


@click.group()
def profiles() -> None:
    """List, show and detect device profiles: facts about devices, each with its source."""


@profiles.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """List the profiles that edgelm ships."""
    from edgelm_device_profiles import load, names

    loaded = [load(name) for name in names()]
    if as_json:
        print_json([profile.to_dict() for profile in loaded])
        return
    rows = [(p.name, p.title, p.category, p.cpu.description.value if p.cpu.description else "—") for p in loaded]
    table(rows, ("name", "device", "kind", "processor"))


@profiles.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the profile NAME (or a .toml file of your own): every value with its unit, kind and source."""
    from edgelm_device_profiles import load

    profile = load(name)
    if as_json:
        print_json(profile.to_dict())
        return
    click.echo(f"{profile.title} ({profile.name})")
    table([(path, _value(fact), fact["kind"], fact["source"]) for path, fact in _facts(profile.to_dict())])


def _facts(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every fact of a profile's dictionary, with its dotted path."""
    if isinstance(value, Mapping):
        if {"value", "unit", "source", "kind"} <= set(value):
            yield path, dict(value)
            return
        for key, item in value.items():
            yield from _facts(item, f"{path}.{key}" if path else key)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _facts(item, f"{path}.{index}")


def _value(fact: dict[str, Any]) -> str:
    values = fact["value"] if isinstance(fact["value"], (list, tuple)) else [fact["value"]]
    text = ", ".join(f"{value:,}" if isinstance(value, (int, float)) else str(value) for value in values)
    return text if fact["unit"] in ("text", "count") else f"{text} {fact['unit']}"


@profiles.command()
@json_option
def detect(as_json: bool) -> None:
    """Say which profile this machine fits, and on what evidence."""
    from edgelm_device_profiles import detect as detect_device

    detection = detect_device()
    if as_json:
        print_json(detection.to_dict())
        return
    click.echo(detection.profile or "no profile fits this machine")
    for line in (*detection.evidence, *(f"warning: {warning}" for warning in detection.warnings)):
        click.echo(f"  {line}")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what can run here: the machine, its profile, each runtime, and how to install what is missing."""
    from edgelm_device_profiles import detect as detect_device
    from edgelm_runtimes.machine import machine_facts
    from edgelm_runtimes.registry import available

    facts, detection, states = machine_facts(), detect_device(), available()
    if as_json:
        runtimes = [asdict(state) for state in states]
        print_json({"machine": facts.to_dict(), "detection": detection.to_dict(), "runtimes": runtimes})
        return
    usable = f", {len(facts.usable_cores)} of them for this process" if facts.usable_cores is not None else ""
    cores = f"{facts.logical_cores or 'unknown number of'} cores{usable}"
    table(
        [
            ("machine", f"{facts.cpu_model}, {facts.architecture}, {cores}"),
            ("profile", detection.profile or "none fits"),
        ]
    )
    click.echo("")
    table([(s.runtime, f"usable, {s.version}" if s.usable else f"not usable: {s.advice}") for s in states])
    click.echo("\nenergy: not measured (no meter is read yet)")
