"""``edgelm profiles``: what is known of devices, and which of them this one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from edgelm.cli.output import json_option, print_json, table

__all__ = ["profiles"]


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
