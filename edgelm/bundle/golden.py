"""Golden vectors: a few inputs with Keras's outputs, so that a device can check itself.

``golden.npz`` is a plain NumPy archive, without pickles. Case ``i`` has these arrays:

- ``{i}/input/{port}`` and ``{i}/output/{port}``: batch 1, without padding: as many tokens as the input has.
- ``{i}/text``: uint8, the text in UTF-8, where the input was a text.
- ``{i}/ids``: int64, the token ids that the tokenizer must give for that text, exactly.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import BundleError

__all__ = ["GoldenCase", "read_golden", "write_golden"]

# A few inputs and outputs of one model: kilobytes; a whole-sequence output of 8 × 512 × 1024 floats is 16 MB.
_MAX_BYTES = 512 * 2**20
_MAX_CASES = 10_000


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One input, and what Keras made of it.

    Attributes:
        text: The text, where the input was one.
        ids: What the tokenizer makes of `text`.
        inputs: By port name, batch 1, without padding.
        outputs: By port name, batch 1, without the rows of padding.
    """

    text: str | None
    ids: list[int] | None
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


def write_golden(folder: Path, cases: Sequence[GoldenCase], *, name: str = "golden.npz") -> Path:
    """Write golden vectors into a bundle that is being made, and return the file."""
    arrays: dict[str, NDArray[Any]] = {}
    for index, case in enumerate(cases):
        if case.text is not None:
            arrays[f"{index}/text"] = np.frombuffer(case.text.encode("utf-8"), np.uint8)
        if case.ids is not None:
            arrays[f"{index}/ids"] = np.asarray(case.ids, np.int64)
        arrays |= {f"{index}/input/{port}": value for port, value in case.inputs.items()}
        arrays |= {f"{index}/output/{port}": value for port, value in case.outputs.items()}
    path = folder / name
    # savez takes the arrays as keywords, and "file" is one of its own; ours hold a slash.
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def read_golden(path: Path) -> list[GoldenCase]:
    """Read golden vectors.

    Raises:
        BundleError: The file is not one that `write_golden` made.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise BundleError(f"{path.name} would unpack to more than {_MAX_BYTES:,} bytes: not read.")
        with np.load(path, allow_pickle=False) as archive:
            return _cases({name: archive[name] for name in archive.files})
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BundleError(f"{path.name} does not hold golden vectors ({error}): the bundle is damaged.") from error


def _cases(arrays: dict[str, NDArray[Any]]) -> list[GoldenCase]:
    cases: dict[int, GoldenCase] = {}
    for key, value in arrays.items():
        number, _, rest = key.partition("/")
        kind, _, port = rest.partition("/")
        index = int(number)
        if not 0 <= index < _MAX_CASES:
            raise ValueError(f"case {index}")
        case = cases.setdefault(index, GoldenCase(None, None, {}, {}))
        if kind == "text":
            cases[index] = GoldenCase(value.tobytes().decode("utf-8"), case.ids, case.inputs, case.outputs)
        elif kind == "ids":
            cases[index] = GoldenCase(case.text, [int(token) for token in value], case.inputs, case.outputs)
        elif kind in ("input", "output") and port:
            (case.inputs if kind == "input" else case.outputs)[port] = value
        else:
            raise ValueError(f"an array called {key!r}")
    return [cases[index] for index in sorted(cases)]
