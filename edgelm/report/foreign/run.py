"""A result that another tool measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ForeignRun", "foreign_id"]


@dataclass(frozen=True, kw_only=True)
class ForeignRun:
    """One model, measured by another tool on some device.

    Attributes:
        id: 16 hexadecimal digits, of what identifies it.
        source: The tool, with its version where it tells it.
        device: As the tool names it.
        model: Likewise.
        recipe: How the weights are stored, in the tool's words; empty where it does not say.
        runtime: What ran it.
        threads: None where the tool does not say.
        generates: Whether it is a language model, measured in tokens a second.
        started: ISO 8601; None where the tool does not say.
        depth: Of the cache before, in tokens; None of other models.
        figures: What it reports, by the names of `edgelm.report.figures.FIELDS`, in SI units.
        placement: Operators by the processor that runs them; empty where the tool does not say.
        notes: What must be known to use the figures.
    """

    id: str
    source: str
    device: str
    model: str
    recipe: str
    runtime: str
    threads: int | None
    generates: bool
    started: str | None
    depth: int | None
    figures: Mapping[str, float]
    placement: Mapping[str, int]
    notes: tuple[str, ...]


def foreign_id(*parts: object) -> str:
    """Return 16 hexadecimal digits that are the same for the same parts."""
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()[:16]
