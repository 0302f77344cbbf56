"""What goes into a signature and comes out of it: checked arrays, the smallest bucket that fits, padding put on and off.

``S`` is a signature's sequence length (its bucket), ``T`` the number of tokens of the input, ``T <= S``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port, Signature
from edgelm.errors import InputError
from edgelm_runtimes.program import Arrays

__all__ = ["check_arrays", "cut", "dtype_of", "fill", "fill_text", "smallest", "token_port"]

_SEQUENCE_ROLES = frozenset(("token_ids", "padding_mask", "segment_ids"))
_largest = np.maximum.reduce  # what `array.max()` comes to, without the two Python functions on the way

# One object a name, so that arrays are compared with `is`: comparing with a name costs a microsecond each time.
dtype_of = functools.cache(np.dtype)


def token_port(signature: Signature) -> Port | None:
    """Return the input that takes token ids, None where there is none."""
    return next((port for port in signature.inputs if port.role == "token_ids"), None)


def smallest(signatures: Sequence[Signature], tokens: int) -> Signature:
    """Return the shortest signature that takes a number of tokens; `signatures` are in ascending order.

    Raises:
        InputError: None is long enough.
    """
    longest = 0
    for signature in signatures:
        if signature.sequence_length is None or signature.sequence_length >= tokens:
            return signature
        longest = signature.sequence_length
    raise InputError(f"The input has {tokens:,} tokens, and the model takes at most {longest:,}.")


def fill_text(signature: Signature, ids: Sequence[int], segments: Sequence[int], pad_id: int) -> Arrays:
    """Return the inputs of a signature for one text.

    Args:
        signature: At least as long as `ids`.
        ids: Token ids.
        segments: Segment ids, as many.
        pad_id: Fills `ids` up.

    Raises:
        InputError: The model has an input that a text does not give.
    """
    count = len(ids)
    length = signature.sequence_length or count
    arrays: Arrays = {}
    for port in signature.inputs:
        if port.role == "token_ids":
            array = np.full((1, length), pad_id, port.dtype)
            array[0, :count] = ids
        elif port.role == "padding_mask":
            array = np.zeros((1, length), port.dtype)
            array[0, :count] = 1
        elif port.role == "segment_ids":
            array = np.zeros((1, length), port.dtype)
            array[0, :count] = segments
        else:
            raise InputError(f"The model also takes '{port.name}', which a text does not give: use run() with arrays.")
        arrays[port.name] = array
    return arrays


def fill(signature: Signature, inputs: Mapping[str, NDArray[Any]], pad_id: int) -> Arrays:
    """Return inputs filled up to the length of a signature: ids with `pad_id`, masks and segments with 0."""
    length = signature.sequence_length
    arrays: Arrays = {}
    for port in signature.inputs:
        value = inputs[port.name]
        if length is not None and port.role in _SEQUENCE_ROLES and value.shape[1] < length:
            padded = np.full((value.shape[0], length), pad_id if port.role == "token_ids" else 0, port.dtype)
            padded[:, : value.shape[1]] = value
            arrays[port.name] = padded
        else:
            arrays[port.name] = value if value.dtype is dtype_of(port.dtype) else value.astype(port.dtype)
    return arrays


def cut(outputs: Arrays, length: int | None, tokens: int) -> Arrays:
    """Return outputs without the rows of padding, where an output has a row for each token: ``(B, S, …)`` to ``(B, T, …)``."""
    if length is None or tokens == length:
        return outputs
    return {
        name: value[:, :tokens] if value.ndim >= 3 and value.shape[1] == length else value
        for name, value in outputs.items()
    }


def check_arrays(signatures: Sequence[Signature], inputs: Mapping[str, Any], vocabulary: int | None) -> Arrays:
    """Return arrays that are safe to feed, in the dtypes of the ports.

    Args:
        signatures: Of the artifact, ascending; their inputs have the same names and ranks.
        inputs: By port name; anything that NumPy takes.
        vocabulary: Token ids have to be below; None where it is not known.

    Raises:
        InputError: A name, dtype, shape or token id does not fit.
    """
    ports = signatures[0].inputs
    if _fit_as_they_are(ports, inputs, vocabulary):
        return dict(inputs)
    missing = [port.name for port in ports if port.name not in inputs]
    extra = [name for name in inputs if name not in {port.name for port in ports}]
    if missing or extra:
        raise InputError(
            f"The model takes the inputs {', '.join(port.name for port in ports)}; "
            + (f"not given: {', '.join(missing)}" if missing else f"not known: {', '.join(map(str, extra))}")
            + "."
        )
    arrays = {port.name: _cast(port, inputs[port.name]) for port in ports}
    for port in ports:
        _check_shape(port, arrays[port.name], signatures)
        if port.role in ("token_ids", "segment_ids"):
            _check_ids(port, arrays[port.name], vocabulary if port.role == "token_ids" else None)
    lengths = {name: arrays[name].shape[1] for name in (port.name for port in ports if port.role in _SEQUENCE_ROLES)}
    if len(set(lengths.values())) > 1:
        raise InputError(
            "The inputs differ in length: " + ", ".join(f"{name} {n}" for name, n in lengths.items()) + "."
        )
    batches = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
    if len(set(batches.values())) > 1:
        raise InputError("The inputs differ in rows: " + ", ".join(f"{name} {n}" for name, n in batches.items()) + ".")
    return arrays


def _fit_as_they_are(ports: Sequence[Port], inputs: Mapping[str, Any], vocabulary: int | None) -> bool:
    """Return whether the inputs are what most callers give: token rows of the right dtype, of one shape, with ids in range.

    The whole check takes 20 µs, a sixth of what a small classifier needs to answer; this one takes 5.
    """
    if len(inputs) != len(ports):
        return False
    shape = None
    for port in ports:
        array = inputs.get(port.name)
        if port.role not in _SEQUENCE_ROLES or type(array) is not np.ndarray or array.dtype is not dtype_of(port.dtype):
            return False
        shape = shape or array.shape
        if array.shape != shape or len(shape) != 2 or 0 in shape or port.shape[0] not in (None, shape[0]):
            return False
        if port.role != "padding_mask":
            # A negative id is a huge one where its sign is read as a digit: one pass finds both ends.
            limit = vocabulary if port.role == "token_ids" and vocabulary is not None else 1 << 31
            if port.dtype != "int32" or not array.flags.c_contiguous or _largest(array.view(np.uint32), None) >= limit:
                return False
    return True


def _cast(port: Port, value: Any) -> NDArray[Any]:
    wanted = np.dtype(port.dtype)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"The input '{port.name}' is not an array: its rows differ in length.") from error
    if array.dtype == wanted:
        return array
    # Integers into floats are fine, floats into integers would be cut, and strings and objects are none of these.
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and wanted.kind != "f"):
        raise InputError(f"The input '{port.name}' takes {port.dtype}, and got {array.dtype}.")
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"The input '{port.name}' takes {port.dtype}, and has values beyond it.")
    with np.errstate(over="ignore"):
        return array.astype(wanted)


def _check_shape(port: Port, array: NDArray[Any], signatures: Sequence[Signature]) -> None:
    """Check every dimension but that of the tokens, for which a bucket is chosen later."""
    lengths = [signature.sequence_length for signature in signatures]
    sequence = port.role in _SEQUENCE_ROLES
    longest = None if None in lengths else max((length for length in lengths if length is not None), default=None)
    fits = array.ndim == len(port.shape) and all(
        extent > 0 and (want is None or extent == want or (sequence and axis == 1))
        for axis, (extent, want) in enumerate(zip(array.shape, port.shape, strict=True))
    )
    if not fits:
        wanted = [
            f"1 to {longest}" if sequence and axis == 1 and longest else "any" if extent is None else str(extent)
            for axis, extent in enumerate(port.shape)
        ]
        raise InputError(f"The input '{port.name}' takes the shape [{', '.join(wanted)}], and got {list(array.shape)}.")


def _check_ids(port: Port, array: NDArray[Any], vocabulary: int | None) -> None:
    """Refuse ids that have no row in the embedding: a runtime crashes on them, or answers with what lies in memory."""
    low, high = int(array.min()), int(array.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        bound = "no upper bound known" if vocabulary is None else f"less than {vocabulary:,}"
        raise InputError(
            f"The input '{port.name}' has the id {low if low < 0 else high:,}: ids are 0 or more, {bound}."
        )
