"""One fact about a device: a value that never travels without its unit, its source and how it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from edgelm.errors import ProfileError, unknown_name

__all__ = ["Fact", "FactKind", "FactSpec", "fact_to_dict", "read_fact"]

FactKind = Literal["measured", "vendor", "derived"]
FactShape = Literal["text", "texts", "count", "counts", "number", "numbers"]
FactValue = str | int | float | tuple[str, ...] | tuple[int, ...] | tuple[float, ...]

T_co = TypeVar("T_co", bound=FactValue, covariant=True)

_KINDS: tuple[str, ...] = get_args(FactKind)
_REQUIRED = ("value", "unit", "source", "kind")
_KEYS = (*_REQUIRED, "note")


@dataclass(frozen=True)
class Fact(Generic[T_co]):
    """A value with its unit, its source and how it is known.

    Attributes:
        value: The value, in `unit`.
        unit: Such as ``Hz``, ``B``, ``W``; ``count`` for a number of things, ``text`` for words.
        source: Who says so: a public document, page or data set; for a derived fact the arithmetic.
        kind: ``measured`` (an instrument or a running device gave it), ``vendor`` (its maker states it) or ``derived``
            (worked out from other facts). A derived fact explains a result, and is never printed as one.
        note: What one must know to use it, such as the conditions of a measurement.
    """

    value: T_co
    unit: str
    source: str
    kind: FactKind
    note: str | None = None


@dataclass(frozen=True)
class FactSpec:
    """What a fact of one name must look like.

    Attributes:
        unit: The only unit that it may have.
        shape: Word or number, one or several. Counts are whole numbers. Every number is above 0.
        choices: The words that it may hold; None allows any.
    """

    unit: str
    shape: FactShape
    choices: tuple[str, ...] | None = None


def read_fact(table: object, spec: FactSpec, where: str) -> Fact[Any]:
    """Return the fact that a table holds.

    Args:
        table: A mapping with ``value``, ``unit``, ``source``, ``kind`` and perhaps ``note``.
        spec: What it must look like.
        where: The place of the table, for messages, such as ``"profile.toml: cpu.cores"``.

    Raises:
        ProfileError: A key is missing, unknown or does not fit `spec`.
    """
    if not isinstance(table, Mapping):
        raise ProfileError(f"{where} is a bare {type(table).__name__}. A fact is a table with {', '.join(_REQUIRED)}.")
    for key in table:
        if key not in _KEYS:
            raise ProfileError(f"{where}: {unknown_name('key of a fact', str(key), _KEYS)}")
    for key in _REQUIRED:
        if key not in table:
            raise ProfileError(f"{where} has no {key}. A fact is a table with {', '.join(_REQUIRED)}.")
    for key in ("unit", "source", "kind", "note"):
        if key in table and not _is_text(table[key]):
            raise ProfileError(f"{where}: {key} must be a text that is not empty, and is {table[key]!r}.")
    if table["unit"] != spec.unit:
        raise ProfileError(f"{where} is in '{table['unit']}', and must be in '{spec.unit}'. Convert the value.")
    if table["kind"] not in _KINDS:
        raise ProfileError(f"{where}: {unknown_name('kind of fact', table['kind'], _KINDS)}")
    value = _read_value(table["value"], spec, where)
    return Fact(value=value, unit=table["unit"], source=table["source"], kind=table["kind"], note=table.get("note"))


def fact_to_dict(fact: Fact[Any] | None) -> dict[str, Any] | None:
    """Return a fact as JSON-able values that `read_fact` takes back, or None for an unknown one."""
    if fact is None:
        return None
    value = list(fact.value) if isinstance(fact.value, tuple) else fact.value
    table = {"value": value, "unit": fact.unit, "source": fact.source, "kind": fact.kind}
    return table if fact.note is None else {**table, "note": fact.note}


def _read_value(value: object, spec: FactSpec, where: str) -> FactValue:
    single = spec.shape.removesuffix("s")
    if single == spec.shape:
        return _read_single(value, single, spec.choices, where)
    if not isinstance(value, list | tuple) or not value:
        raise ProfileError(f"{where} must be a list of one or more {spec.shape}, and is {value!r}.")
    # A list holds one shape only, which the type checker cannot see through the loop.
    return tuple(_read_single(item, single, spec.choices, where) for item in value)  # type: ignore[return-value]


def _read_single(value: object, shape: str, choices: tuple[str, ...] | None, where: str) -> str | int | float:
    if shape == "text":
        if not isinstance(value, str) or not _is_text(value):
            raise ProfileError(f"{where} must be a text that is not empty, and is {value!r}.")
        if choices is not None and value not in choices:
            raise ProfileError(f"{where}: {unknown_name('value', value, choices)}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProfileError(f"{where} must be a number, and is {value!r}.")
    if value <= 0:
        raise ProfileError(f"{where} is {value!r}. Numbers are above 0; leave out what is not known.")
    if shape == "number":
        return float(value)
    if not isinstance(value, int):
        raise ProfileError(f"{where} must be a whole number, and is {value!r}.")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
