"""Amounts as people write them: ``20ms``, ``85%``, ``6 MiB``, ``1.5 mJ``."""

from __future__ import annotations

from collections.abc import Mapping

from edgelm.errors import InputError
from edgelm.report.figures import Dimension
from edgelm.report.numbers import DASH, digits, energy, latency, percent, size

__all__ = ["UNITS", "shown", "to_si"]

UNITS: Mapping[Dimension, Mapping[str, float]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0},
    "share": {"": 1.0, "%": 0.01},
    "rate": {"": 1.0, "/s": 1.0},
    "bytes": {
        "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    },
    "energy": {"uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0},
    "count": {"": 1.0},
    "ratio": {"": 1.0, "%": 0.01},
}  # fmt: skip
"""The units of each dimension, and their factors to SI; "" is a bare number."""


def to_si(number: float, unit: str, dimension: Dimension, name: str) -> float:
    """Return an amount in SI units.

    Args:
        number: As written.
        unit: As written; "" for none.
        dimension: Of the figure that it is compared with.
        name: Of that figure, for the message.

    Raises:
        InputError: The unit does not fit the figure.
    """
    known = UNITS[dimension]
    if unit not in known:
        given = f"'{unit}' does not measure it" if unit else "a bare number does not say of what"
        units = ", ".join(each or "no unit" for each in known)
        raise InputError(f"{name} is compared with {number:g}{unit}, and {given}. Known units: {units}.")
    return number * known[unit]


def shown(value: float | None, dimension: Dimension) -> str:
    """Return a figure for people, with the unit that suits it.

    >>> shown(0.0034, "time"), shown(5_600_000, "bytes"), shown(0.91, "share"), shown(None, "energy")
    ('3.40 ms', '5.60 MB', '91.0 %', '—')
    """
    if value is None:
        return DASH
    if dimension == "time":
        return latency(value)
    if dimension == "bytes":
        return size(value)
    if dimension == "share":
        return percent(value) if 0 <= value <= 1 else f"{value * 100:.2f} %"
    if dimension == "energy":
        return energy(value)
    if dimension == "rate":
        return f"{digits(value)} /s"
    return f"{value:,.0f}" if dimension == "count" else digits(value)
