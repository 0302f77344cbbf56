"""Numbers for people: three significant digits, units outside, and a dash where nothing was measured."""

from __future__ import annotations

import math

__all__ = ["DASH", "digits", "energy", "latency", "milliseconds", "percent", "size"]

DASH = "—"


def digits(value: float) -> str:
    """Return a number with three significant digits, never as a power of ten.

    >>> digits(3.14159), digits(0.0123456), digits(1234.5)
    ('3.14', '0.0123', '1,234')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    magnitude = math.floor(math.log10(abs(value)))
    # Rounding may carry into the next power of ten: 9.996 has three digits as 10.0, not as 10.00.
    magnitude = math.floor(math.log10(abs(round(value, 2 - magnitude))))
    return f"{value:,.{min(6, max(0, 2 - magnitude))}f}"


def milliseconds(seconds: float | None) -> str:
    """Return seconds as a number of milliseconds.

    >>> milliseconds(0.003418)
    '3.42'
    """
    return DASH if seconds is None else digits(seconds * 1e3)


def latency(seconds: float | None) -> str:
    """Return seconds with the unit that suits them.

    >>> latency(0.003418), latency(0.0000341), latency(12)
    ('3.42 ms', '34.1 µs', '12.0 s')
    """
    if seconds is None:
        return DASH
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 0.9995:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e6)} µs"


def percent(share: float | None) -> str:
    """Return a share of 1 as a percentage with one decimal; never 100 % or 0 % of what is not quite that.

    >>> percent(0.912), percent(0.99999), percent(1.0)
    ('91.2 %', '99.999 %', '100 %')
    """
    if share is None:
        return DASH
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    decimals = next((count for count in (1, 2, 3) if 0 < round(share * 100, count) < 100), 4)
    return f"{share * 100:.{decimals}f} %"


def size(size_bytes: float | None) -> str:
    """Return a number of bytes with a decimal unit.

    >>> size(5_612_345)
    '5.61 MB'
    """
    if size_bytes is None:
        return DASH
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor * 0.9995:
            return f"{digits(size_bytes / factor)} {unit}"
    return f"{size_bytes:.0f} B"


def energy(joules: float | None) -> str:
    """Return joules with the unit that suits them; net of rest they may be below 0.

    >>> energy(0.0123), energy(4.5e-6), energy(3.0), energy(None)
    ('12.3 mJ', '4.50 µJ', '3.00 J', '—')
    """
    if joules is None:
        return DASH
    for unit, factor in (("J", 1.0), ("mJ", 1e3)):
        if abs(joules) * factor >= 0.9995:
            return f"{digits(joules * factor)} {unit}"
    return f"{digits(joules * 1e6)} µJ"
