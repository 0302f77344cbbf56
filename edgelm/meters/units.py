"""The units that external meters write, and what one of each is in SI."""

from __future__ import annotations

from typing import Literal

__all__ = ["UNITS", "Dimension", "find_unit"]

Dimension = Literal["time", "power", "voltage", "current", "energy"]

UNITS: dict[str, tuple[Dimension, float]] = {
    "s": ("time", 1.0), "ms": ("time", 1e-3), "us": ("time", 1e-6), "µs": ("time", 1e-6), "ns": ("time", 1e-9),
    "W": ("power", 1.0), "mW": ("power", 1e-3), "uW": ("power", 1e-6), "µW": ("power", 1e-6), "kW": ("power", 1e3),
    "V": ("voltage", 1.0), "mV": ("voltage", 1e-3), "uV": ("voltage", 1e-6), "µV": ("voltage", 1e-6),
    "A": ("current", 1.0), "mA": ("current", 1e-3), "uA": ("current", 1e-6), "µA": ("current", 1e-6),
    "J": ("energy", 1.0), "mJ": ("energy", 1e-3), "kJ": ("energy", 1e3), "uJ": ("energy", 1e-6), "µJ": ("energy", 1e-6),
    "Wh": ("energy", 3600.0), "mWh": ("energy", 3.6), "kWh": ("energy", 3.6e6),
}  # fmt: skip
"""Symbol -> what it measures, and one of it in s, W, V, A or J. ``m`` is a thousandth: no meter at a desk shows megawatts."""

_WORDS: dict[str, tuple[Dimension, float]] = {
    "seconds": ("time", 1.0), "sec": ("time", 1.0), "milliseconds": ("time", 1e-3),
    "watt": ("power", 1.0), "watts": ("power", 1.0), "milliwatts": ("power", 1e-3),
    "volt": ("voltage", 1.0), "volts": ("voltage", 1.0),
    "amp": ("current", 1.0), "amps": ("current", 1.0), "ampere": ("current", 1.0), "amperes": ("current", 1.0),
    "joule": ("energy", 1.0), "joules": ("energy", 1.0),
}  # fmt: skip


def find_unit(symbol: str) -> tuple[Dimension, float] | None:
    """Return what a symbol or a word stands for, whatever its case; None where it is none.

    >>> find_unit("mWh"), find_unit("MWH"), find_unit("Watts")
    (('energy', 3.6), ('energy', 3.6), ('power', 1.0))
    """
    symbol = symbol.strip().replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    if symbol in UNITS:
        return UNITS[symbol]
    lower = symbol.lower()
    return _WORDS.get(lower) or next((value for name, value in UNITS.items() if name.lower() == lower), None)
