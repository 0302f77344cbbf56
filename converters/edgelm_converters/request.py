"""What the user asks of a conversion, checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.bundle.manifest import Format
from edgelm_converters.chain import Chain
from edgelm_converters.recipes import Recipe
from edgelm_converters.targets.table import Target

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Progress", "Request"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """The arguments of `edgelm_converters.convert`, which has their descriptions.

    `name` is the bundle's; `targets` are formats, and `aimed` is what they are for.
    """

    name: str
    targets: tuple[Format, ...] | None
    chain: Chain
    tokenizer: str | Path | Tokenizer | None
    target_tokenizer: str | Path | Tokenizer | None
    labels: str | Path | Sequence[str] | None
    calibration: str | Path | None
    validation: str | Path | None
    sequence_length: int | None
    chat_template: str | Path | None
    cache_lengths: tuple[int, ...] | None
    prefill_lengths: tuple[int, ...] | None
    aimed: Target | None = None

    @property
    def recipe(self) -> Recipe:
        """How the weights are stored."""
        return self.chain.recipe
