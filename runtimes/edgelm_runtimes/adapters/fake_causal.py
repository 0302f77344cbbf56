"""A language model that computes nothing: for tests of applications, without a model's time and memory.

Its scores depend on the ids so far alone, so the same prompt always gives the same answer, whatever was cached. A test that
needs certain scores gives a function:

>>> program = FakeCausalProgram(100, 64, scores=lambda ids: np.eye(100, dtype=np.float32)[(ids[-1] + 1) % 100])
>>> session = Session(bundle, artifact, program)

It keeps to the protocol more strictly than a runtime has to: what a runtime might compute nonsense for is an error here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError
from edgelm_runtimes.adapters.shared import closed
from edgelm_runtimes.program import Logits, ProgramFacts, ProgramOptions

__all__ = ["FakeCausalProgram", "Scores", "open_causal"]

Scores = Callable[[Sequence[int]], NDArray[Any]]

_VERSION = "1"
# Where neither the file nor its signatures say how much it holds.
_CONTEXT_LENGTH = 4096


class FakeCausalProgram:
    """A `CausalProgram` whose scores come from a function.

    Args:
        vocabulary_size: ``V``.
        context_length: The most positions.
        options: Reported in `facts`.
        scores: Makes the ``(V,)`` scores of the next token from all ids before it; without it they are drawn from a normal
            distribution, seeded with the ids.

    Attributes:
        ids: Of the positions computed.
        calls: The start, the number of tokens and the logits of each call of `forward`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        context_length: int,
        options: ProgramOptions | None = None,
        *,
        scores: Scores | None = None,
    ) -> None:
        self.ids: list[int] = []
        self.calls: list[tuple[int, int, Logits]] = []
        self._vocabulary_size = vocabulary_size
        self._context_length = context_length
        self._options = options or ProgramOptions(threads=1)
        self._scores = scores or self._drawn
        self._buffer = np.zeros((0, vocabulary_size), np.float32)
        self._closed = False

    @property
    def facts(self) -> ProgramFacts:
        """What it claims to be."""
        notes = ("a fake for tests: its words mean nothing",)
        return ProgramFacts("fake", _VERSION, self._options.device, self._options.threads or 1, "none", notes)

    @property
    def context_length(self) -> int:
        """See `CausalProgram.context_length`."""
        return self._context_length

    @property
    def vocabulary_size(self) -> int:
        """See `CausalProgram.vocabulary_size`."""
        return self._vocabulary_size

    def forward(self, ids: NDArray[np.int32], start: int, *, logits: Logits = "last") -> NDArray[np.float32]:
        """See `CausalProgram.forward`.

        Raises:
            ExecutionError: The program was closed, or the call breaks a rule of the protocol.
        """
        self._check(ids, start, logits)
        self.calls.append((start, ids.size, logits))
        self.ids[start:] = ids.tolist()
        # What an earlier call gave is overwritten, as the protocol allows: who still looks at it finds NaNs.
        self._buffer.fill(np.nan)
        first = {"none": len(self.ids) + 1, "last": len(self.ids), "all": start + 1}[logits]
        rows = [self._scores(self.ids[:end]) for end in range(first, len(self.ids) + 1)]
        if not rows:
            return np.zeros(0, np.float32)
        self._buffer = np.stack(rows).astype(np.float32)
        return self._buffer if logits == "all" else self._buffer[0]

    def close(self) -> None:
        """See `CausalProgram.close`."""
        self._closed = True

    def _check(self, ids: NDArray[np.int32], start: int, logits: Logits) -> None:
        if self._closed:
            raise closed("fake")
        if ids.ndim != 1 or ids.dtype != np.int32 or not ids.size:
            raise ExecutionError(f"fake takes int32 ids (n,), and got {ids.dtype} {list(ids.shape)}.")
        if logits not in ("none", "last", "all"):
            raise ExecutionError(f"fake gives logits 'none', 'last' or 'all', and {logits!r} were asked for.")
        if not 0 <= start <= len(self.ids):
            raise ExecutionError(f"fake has computed {len(self.ids)} positions, and was to go on from {start}.")
        if start + ids.size > self._context_length:
            raise ExecutionError(
                f"fake holds {self._context_length} positions, and was given those up to {start + ids.size}."
            )
        if ids.min() < 0 or ids.max() >= self._vocabulary_size:
            raise ExecutionError(
                f"fake knows the ids below {self._vocabulary_size}, and got {ids.min()} to {ids.max()}."
            )

    def _drawn(self, ids: Sequence[int]) -> NDArray[Any]:
        seed = zlib.crc32(np.asarray(ids, np.int32).tobytes())
        return np.random.default_rng(seed).normal(size=self._vocabulary_size)


def open_causal(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> FakeCausalProgram:
    """Open nothing: the file only has to be there, and its signatures to tell their sizes.

    Raises:
        RuntimeUnavailableError: There is no such file, or no signature gives scores of a known number.
    """
    if not file.is_file():
        raise RuntimeUnavailableError(f"fake does not open {file.name}: there is no such file.")
    sizes = [signature.outputs[0].shape[-1] for signature in signatures if signature.kind == "decode"]
    lengths = [signature.cache.length for signature in signatures if signature.cache is not None]
    if not sizes or sizes[0] is None:
        raise RuntimeUnavailableError(f"fake finds no signature of {file.name} that gives a known number of scores.")
    known = [length for length in lengths if length is not None]
    return FakeCausalProgram(sizes[0], max(known, default=_CONTEXT_LENGTH), options)
