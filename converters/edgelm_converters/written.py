"""A model file that was written, in whichever way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgelm.bundle import Signature

__all__ = ["Written"]


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: The file.
        opened: What a runtime of edgelm's opens to check it: the file, or the TFLite file that a container was made around,
            which is deleted after.
        signatures: How that is called.
        operators: Of one pass.
        notes: What was done otherwise than the recipe says.
        companions: Names of other files beside it that belong to it, but for those of its weights.
    """

    path: Path
    opened: Path
    signatures: tuple[Signature, ...]
    operators: dict[str, int]
    notes: tuple[str, ...]
    companions: tuple[str, ...] = ()

    @property
    def data_files(self) -> tuple[str, ...]:
        """Names of the files of weights beside it, and of its companions."""
        weights = sorted(file.name for file in self.path.parent.glob(f"{self.path.name}.*"))
        return (*weights, *(name for name in self.companions if name not in weights))

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum((self.path.parent / name).stat().st_size for name in (self.path.name, *self.data_files))
