"""What every adapter needs: checks against the manifest, and one line out of a runtime's error."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port, Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError

__all__ = [
    "as_numbers",
    "check_inputs",
    "check_names",
    "closed",
    "first_line",
    "refused",
    "unknown_signature",
    "version",
]

# Where in the runtime's own source something failed says nothing to a user, unless there is nothing else:
# "ERROR: [./litert/cc/litert_compiled_model.h:1961]", "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model …".
_NOISE = re.compile(
    r"^[└\s]*(?:(?:ERROR|WARNING):?\s*)?(?:\[?[\w./-]+\.(?:cc|h|cpp|py):\d+\]?\s*|\[ONNXRuntimeError\] : \d+ : \w+ : )"
)


def version(distribution: str) -> str:
    """Return the version of an installed package, ``unknown`` where its metadata are missing.

    Distributions such as onnxruntime-gpu and ai-edge-litert-nightly bring a package under another name.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def first_line(error: BaseException) -> str:
    """Return the first line of a runtime's error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [stripped for line in lines if (stripped := _NOISE.sub("", line).strip(" └"))]
    return (telling or lines or [type(error).__name__])[0][:300]


def refused(runtime: str, file: Path, error: BaseException) -> RuntimeUnavailableError:
    """Return the error for a file that a runtime does not open."""
    return RuntimeUnavailableError(f"{runtime} does not open {file.name}: {first_line(error)}")


def closed(runtime: str) -> ExecutionError:
    """Return the error for a program that is used after it was closed."""
    return ExecutionError(f"This {runtime} program was closed: open it again to run it.")


def unknown_signature(runtime: str, name: str, known: Iterable[str]) -> RuntimeUnavailableError:
    """Return the error for a signature that the file does not have."""
    return RuntimeUnavailableError(
        f"{runtime} finds no signature '{name}' in the file. It has: {', '.join(sorted(known)) or 'none'}. "
        "The manifest and the model do not belong together."
    )


def check_names(runtime: str, signature: Signature, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Check that a file's inputs and outputs are called as the manifest says.

    Raises:
        RuntimeUnavailableError: They are not.
    """
    for what, found, ports in (("inputs", inputs, signature.inputs), ("outputs", outputs, signature.outputs)):
        names = {port.name for port in ports}
        if set(found) != names:
            raise RuntimeUnavailableError(
                f"{runtime}: the {what} of '{signature.name}' are {', '.join(sorted(found))}, and the manifest says "
                f"{', '.join(sorted(names))}. The manifest and the model do not belong together."
            )


def check_inputs(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Check shapes and dtypes before they reach native code, which would read past the end or keep what was there.

    Raises:
        ExecutionError: An input is missing, unknown, or of the wrong shape or dtype.
    """
    for port in signature.inputs:
        value = inputs.get(port.name)
        if value is None or value.dtype != port.dtype or not _fits(value.shape, port.shape):
            raise ExecutionError(_misfit(signature, port, value))
    if len(inputs) > len(signature.inputs):
        extra = sorted(set(inputs) - {port.name for port in signature.inputs})
        raise ExecutionError(f"The signature '{signature.name}' has no input {', '.join(extra)}.")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return shape == wanted or (
        len(shape) == len(wanted)
        and all(extent == want or (want is None and extent > 0) for extent, want in zip(shape, wanted, strict=True))
    )


def _misfit(signature: Signature, port: Port, value: NDArray[Any] | None) -> str:
    wanted = f"{port.dtype} [{', '.join('any' if extent is None else str(extent) for extent in port.shape)}]"
    got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
    return f"The input '{port.name}' of '{signature.name}' takes {wanted}, and got {got}."


def as_numbers(signature: Signature, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what a call gave, with integers that stand for numbers turned into float32 (`Port.scale`)."""
    for port in signature.outputs:
        if port.scale is not None:
            steps = outputs[port.name].astype(np.float32) - np.float32(port.zero_point or 0)
            outputs[port.name] = steps * np.float32(port.scale)
    return outputs
