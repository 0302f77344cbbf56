from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.report import numbers
from edgelm.report.numbers import digits, latency, percent, size


def test_examples() -> None:
    assert doctest.testmod(numbers).failed == 0


@given(st.floats(1e-4, 1e9))
def test_digits_are_three_and_near(value: float) -> None:
    text = digits(value)
    assert "e" not in text
    # Half a step of the third digit, of a first digit of at least 1: 0.005 of the value.
    assert math.isclose(float(text.replace(",", "")), value, rel_tol=0.00501)
    assert value >= 999.5 or len(text.replace(".", "").lstrip("0")) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9999, "1.00 s"),
        (0.99949, "999 ms"),
        (0.0009999, "1.00 ms"),
        (1e-7, "0.100 µs"),
        (75.0, "75.0 s"),
        (None, "—"),
    ],
)
def test_latency(seconds: float | None, text: str) -> None:
    assert latency(seconds) == text


@given(st.floats(0, 1))
def test_percent_never_rounds_to_all_or_nothing(share: float) -> None:
    if 1e-6 < share < 1 - 1e-6:
        assert percent(share) not in ("0 %", "100 %", "0.0 %", "100.0 %")
        assert abs(float(percent(share).removesuffix(" %")) - share * 100) <= 0.0501


def test_percent_of_all_and_nothing() -> None:
    assert [percent(1.0), percent(0.0), percent(None)] == ["100 %", "0 %", "—"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999_999, "1.00 MB"), (21_300_000, "21.3 MB"), (None, "—")]
)
def test_size(count: int | None, text: str) -> None:
    assert size(count) == text
