from __future__ import annotations

import doctest

import pytest

from edgelm.errors import InputError
from edgelm.report import quantities
from edgelm.report.figures import FIELDS
from edgelm.report.quantities import UNITS, shown, to_si


def test_examples() -> None:
    assert doctest.testmod(quantities).failed == 0


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (0.0, "time", "0 µs"),
        (-0.003, "share", "-0.30 %"),
        (1.25, "ratio", "1.25"),
        (1234567.0, "count", "1,234,567"),
        (41.5, "rate", "41.5 /s"),
        (-0.0021, "energy", "-2.10 mJ"),
        (2**20, "bytes", "1.05 MB"),
    ],
)
def test_shown(value: float, dimension: quantities.Dimension, text: str) -> None:
    assert shown(value, dimension) == text


def test_every_dimension_has_units_and_every_figure_a_dimension() -> None:
    assert {field.dimension for field in FIELDS.values()} == UNITS.keys()
    for field in FIELDS.values():
        assert field.about
        assert 1.0 in UNITS[field.dimension].values()


def test_binary_and_decimal_bytes_differ() -> None:
    assert to_si(6, "MiB", "bytes", "size") == 6 * 1024 * 1024
    assert to_si(6, "MB", "bytes", "size") == 6_000_000
    with pytest.raises(InputError, match="'mb' does not measure it"):
        to_si(6, "mb", "bytes", "size")
