"""``edgelm inspect --device``: what of a bundle really runs where it was asked to."""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.cli.output import print_json, table
from edgelm.errors import InputError, RuntimeUnavailableError

__all__ = ["SHARE", "show_placement"]


class _Share(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click alone
    name = "SHARE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return 0.95 for ``95%`` and for ``0.95``."""
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"'{text}' is no share, such as 95%", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"'{text}' is no share between 0 and 100 %", param, ctx)
        return share


SHARE = _Share()


def show_placement(bundle: Path, runtime: str | None, device: str, required: float | None, *, as_json: bool) -> None:
    """Open a bundle on a device, tried before, and show how many of its operators run there.

    Raises:
        InputError: The device is the CPU.
        RuntimeUnavailableError: The device does not take the bundle, or less of it than is required.
    """
    from edgelm_runtimes import load

    if device == "cpu":
        raise InputError("On the CPU every operator runs: name another device, such as --device edgetpu.")
    with load(bundle, runtime=runtime, device=device) as session:
        facts, operators = session.facts, session.artifact.operators
    # LiteRT refuses a file for the GPU of which one operator would stay behind.
    placement = facts.placement or {device: sum(operators.values())}
    whole = sum(placement.values())
    there = whole - placement.get("cpu", 0)
    share = there / whole
    if as_json:
        print_json(
            {"device": device, "runtime": facts.runtime, "placement": placement, "share": share, "notes": facts.notes}
        )
    else:
        rows = [(where, f"{count} of {whole} operators") for where, count in placement.items()]
        table([("runtime", f"{facts.runtime} {facts.runtime_version}, {facts.delegate}"), *rows])
        for note in facts.notes:
            click.echo(f"note: {note}")
    if required is not None and share < required:
        raise RuntimeUnavailableError(
            f"{there} of {whole} operators ({share:.1%}) run on {device}, and {required:.1%} are required."
        )
