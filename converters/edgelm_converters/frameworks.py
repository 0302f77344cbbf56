"""Importing TensorFlow and Keras: late, quietly, and with a clear word where they are missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

from edgelm.errors import MissingPackageError, ModelError

__all__ = ["import_keras", "import_keras_hub", "import_tensorflow", "require"]


def require(package: str, *, what: str) -> None:
    """Raise where a package that the extra ``convert`` brings is not installed, without importing it.

    Args:
        package: As it is imported.
        what: What needs it, such as ``"target 'onnx'"``.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, such as one that a test took away
        found = sys.modules.get(package) is not None
    if not found:
        raise MissingPackageError(package, extra="convert", what=what)


def import_keras() -> ModuleType:
    """Return ``keras``.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        with _quiet_import("tensorflow"):
            return importlib.import_module("keras")
    except ModuleNotFoundError as error:
        raise _missing(error, "reading a Keras model") from error


def import_tensorflow() -> ModuleType:
    """Return ``tensorflow``, where Keras runs on it.

    Raises:
        MissingPackageError: It is not installed.
        ModelError: Keras runs on another backend, so that TensorFlow's converter cannot trace its models.
    """
    keras = import_keras()
    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"Keras runs on the backend '{keras.backend.backend()}', and a model that is not recognised is traced by "
            "TensorFlow: set KERAS_BACKEND=tensorflow and load the model again."
        )
    try:
        return importlib.import_module("tensorflow")
    except ModuleNotFoundError as error:
        raise _missing(error, "tracing a model") from error


def import_keras_hub() -> ModuleType:
    """Return ``keras_hub``.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        with _quiet_import("keras_hub"):
            return importlib.import_module("keras_hub")
    except ModuleNotFoundError as error:
        if error.name != "keras_hub":
            raise
        raise MissingPackageError("keras_hub", extra="keras-hub", what="reading a KerasHub model") from error


def _missing(error: ModuleNotFoundError, what: str) -> Exception:
    """Return our error for a package that the extra brings, or the error itself where something else is broken."""
    if error.name in ("keras", "tensorflow"):
        return MissingPackageError(error.name, extra="convert", what=what)
    return error


@contextlib.contextmanager
def _quiet_import(package: str) -> Iterator[None]:
    """Keep the chatter of a first import of TensorFlow off the terminal.

    Its native log says at each import that it found no GPU, which no environment variable stops since version 2.21. What
    was kept back is shown where the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if package in sys.modules:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
