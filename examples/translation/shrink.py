"""Store a `.keras` file's weights as float16: half the bytes, and Keras reads them back as float32."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ["halve_weights"]

WEIGHTS = "model.weights.h5"


def halve_weights(source: Path, destination: Path) -> None:
    """Write `source` again as `destination`, with every float32 weight rounded to float16.

    A `.keras` file is a zip of the architecture, which stays as it is (float32 layers), and of an HDF5 file of weights,
    whose numbers Keras converts to the layers' type when it reads them. The rounding is to 11 bits, at most 2**-11 of a
    weight.

    Raises:
        ValueError: A weight is beyond float16's largest number, 65504.
    """
    partial = destination.with_name(destination.name + ".partial")
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as made:
        for name in given.namelist():
            content = given.read(name)
            made.writestr(name, _halve(content) if name == WEIGHTS else content)
    partial.replace(destination)


def _halve(content: bytes) -> bytes:
    made = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as source, h5py.File(made, "w") as destination:
        for name, value in source.attrs.items():
            destination.attrs[name] = value

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Group):
                copied = destination.create_group(name)
            else:
                values = item[()]
                if values.dtype == np.float32:
                    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
                        raise ValueError(f"The weight {name} is too large for float16: keep the file as it is.")
                    values = values.astype(np.float16)
                copied = destination.create_dataset(name, data=values)
            for key, value in item.attrs.items():
                copied.attrs[key] = value

        source.visititems(copy)
    return made.getvalue()
