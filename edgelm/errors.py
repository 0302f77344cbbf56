"""Every error that edgelm raises on purpose, as one tree.

::

    EdgelmError                 one line for the user: what happened, why, what to do
    ├── ModelError              a model that cannot be read, or that no converter takes
    ├── RecipeError             a recipe or target that is unknown or does not fit
    ├── ConversionError         a converter failed, or made a file that does not run
    │   └── ParityError         the artifact runs, but its numbers leave the stated bound
    ├── TokenizerError          a tokenizer that cannot be read, or does not fit the model
    ├── InputError              text, arrays, labels or data that cannot be used
    ├── BundleError             a bundle that is missing, foreign, damaged or too new
    │   └── IntegrityError      a file in it is not the one that was written
    ├── RuntimeUnavailableError a runtime or device that is not installed here, or refuses this file
    ├── ExecutionError          the runtime failed while it ran
    ├── DeviceError             a board or a phone that is not reached, refuses, has no space, or is lost
    ├── MeterError              an energy meter that is missing, denied, or gives no usable reading
    ├── ProfileError            a device profile that is unknown or not valid
    ├── MissingPackageError     an optional package is needed; names the extra that brings it
    └── OutputError             the output exists, or cannot be written
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BundleError",
    "ConversionError",
    "DeviceError",
    "EdgelmError",
    "ExecutionError",
    "InputError",
    "IntegrityError",
    "MeterError",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "ParityError",
    "ProfileError",
    "RecipeError",
    "RuntimeUnavailableError",
    "TokenizerError",
    "unknown_name",
]


class EdgelmError(Exception):
    """An expected failure. Its message is one clear line: what, why, what to do."""


class ModelError(EdgelmError):
    """A model that cannot be read, or that no converter takes."""


class RecipeError(EdgelmError):
    """A recipe or a target that is unknown, or does not fit the model."""


class ConversionError(EdgelmError):
    """A converter failed, or made a file that does not run."""


class ParityError(ConversionError):
    """The artifact runs, but its numbers leave the bound that was stated for its recipe."""


class TokenizerError(EdgelmError):
    """A tokenizer that cannot be read, or does not fit the model."""


class InputError(EdgelmError):
    """Text, arrays, labels or data that cannot be used."""


class BundleError(EdgelmError):
    """A bundle that is missing, foreign, damaged or written by a newer edgelm."""


class IntegrityError(BundleError):
    """A file in the bundle is not the one that was written."""


class RuntimeUnavailableError(EdgelmError):
    """A runtime or a device that is not installed here, or that cannot run this file."""


class ExecutionError(EdgelmError):
    """The runtime failed while it ran the model."""


class DeviceError(EdgelmError):
    """A board or a phone that is not reached, that refuses or lacks what is asked of it, or that is lost."""


class MeterError(EdgelmError):
    """An energy meter that is missing, that this user may not read, or whose readings cannot be used."""


class ProfileError(EdgelmError):
    """A device profile that is unknown or not valid."""


class MissingPackageError(EdgelmError):
    """An optional package is needed and not installed.

    Args:
        package: The package as it is imported, such as ``"tensorflow"``.
        extra: The extra of edgelm that brings it, such as ``"convert"``.
        what: What needs it, such as ``"converter 'tflite'"``.
    """

    def __init__(self, package: str, *, extra: str, what: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'edgelm[{extra}]'"
        )
        self.package = package
        self.extra = extra


class OutputError(EdgelmError):
    """The output exists already, or cannot be written."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not in a table, with the nearest one that is.

    >>> unknown_name("runtime", "litret", ["litert", "onnx"])
    "No runtime is called 'litret'. Did you mean 'litert'? Known: litert, onnx."
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"No {kind} is called '{name}'.{hint} Known: {', '.join(names)}."
