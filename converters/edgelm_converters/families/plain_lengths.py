"""From what a plain model computes at one length to what it computes at every length that it takes.

A capture shows a model at one number of tokens, where a position table is a constant of that many rows. Here the model is
captured at several lengths: the captures must agree in everything but those rows, and the rows of the shorter must be the
first rows of the longer. An encoder-decoder has two lengths, which differ in every capture, so that neither is taken for the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.frameworks import import_keras
from edgelm_converters.keras_attention_masks import OtherConstantMask
from edgelm_converters.keras_graph import model_inputs
from edgelm_converters.spec import Float32, TransformerSpec

__all__ = ["read_at_every_length", "read_pair_at_every_length"]

AtLength = Callable[[int], TransformerSpec]
AtLengths = Callable[[int, int], TransformerSpec]

_PROBES = (3, 5)  # of a free axis; short, since every position table has that many rows
_PAIR_PROBES = ((3, 4), (6, 5))  # of a source and a target
_COMPUTE_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
_COMPUTED_ROWS = 512  # of a table that is computed (sinusoidal), which nothing bounds


def read_at_every_length(model: Any, at: AtLength, sequence_length: int | None) -> TransformerSpec:
    """Return the spec that holds at every length that the model takes.

    Args:
        model: A built ``keras.Model``.
        at: Reads the model at one length; raises `NotRecognised`.
        sequence_length: The most tokens that the user wants, or None. It counts where nothing in the model states a length.

    Raises:
        NotRecognised: The model cannot be read, or computes something else at another length.
    """
    declared, called = _stated_lengths(model)
    if declared is not None:
        return _of_one_length(at, declared)
    try:
        short, probe = (at(length) for length in _PROBES)
    except NotRecognised:
        only = called or sequence_length
        if only is None:
            raise
        return _of_one_length(at, only)  # it runs at this length alone, as with a constant table
    _check_same(short, probe)
    if probe.embeddings.position is None:
        return _with_long_mask(at, probe, sequence_length) if probe.generates else probe
    rows, whole = _whole_table(model, at, (_PROBES[1], probe), _positions, sequence_length)
    _check_same(probe, whole)
    return replace(whole, max_length=rows)


def read_pair_at_every_length(
    model: Any, at: AtLengths, sides: Collection[str], sequence_length: int | None
) -> TransformerSpec:
    """Return the spec of an encoder-decoder that holds at every length that the model takes.

    Args:
        model: A built ``keras.Model``.
        at: Reads the model at a length of the source and one of the target; raises `NotRecognised`.
        sides: Names of the source's inputs.
        sequence_length: The most tokens that the user wants on either side, or None.

    Raises:
        NotRecognised: The model cannot be read, or computes something else at other lengths.
    """
    fixed = [_declared_length(model, sides, inside=inside) for inside in (True, False)]
    (source, target), longer = (
        [given or probe for given, probe in zip(fixed, pair, strict=True)] for pair in _PAIR_PROBES
    )
    probe = at(*longer)
    _check_same(at(source, target), probe)
    if fixed[0] is not None and probe.source is not None and probe.source.mask == "none":
        raise NotRecognised(
            f"the source takes {fixed[0]} tokens only, and the model sees its padding: hide it (mask_zero=True), or leave "
            "the axis free (None)"
        )
    source, target = longer
    rows: list[int | None] = list(fixed)
    if fixed[0] is None and _source_positions(probe) is not None:
        rows[0], _ = _whole_table(
            model, lambda length: at(length, target), (source, probe), _source_positions, sequence_length
        )
    if fixed[1] is None and probe.embeddings.position is not None:
        rows[1], _ = _whole_table(
            model, lambda length: at(source, length), (target, probe), _positions, sequence_length
        )
    elif fixed[1] is None:
        rows[1] = max(sequence_length or _COMPUTED_ROWS, target)  # to here its mask is seen to be causal throughout
    whole = at(rows[0] or source, rows[1] or target)
    _check_same(probe, whole)
    if whole.source is None:
        raise NotRecognised("the model does not compute the same each time, or at each length")
    return replace(whole, max_length=rows[1], source=replace(whole.source, max_length=rows[0]))


def _declared_length(model: Any, sides: Collection[str], *, inside: bool) -> int | None:
    """Return the length that the inputs of one side declare; None where it is free."""
    entries = [entry for entry in model_inputs(model) if entry.shape and (entry.name in sides) is inside]
    return next((entry.shape[0] for entry in entries if entry.declared and entry.shape[0] is not None), None)


def _stated_lengths(model: Any) -> tuple[int | None, int | None]:
    """Return the length that the inputs declare, and that of the batch that a subclassed model was first called with."""
    inputs = [entry for entry in model_inputs(model) if entry.shape]
    declared = (entry.shape[0] for entry in inputs if entry.declared and entry.shape[0] is not None)
    called = (entry.shape[0] for entry in inputs if not entry.declared and entry.shape[0] is not None)
    return next(declared, None), next(called, None)


def _of_one_length(at: AtLength, length: int) -> TransformerSpec:
    """Return the spec of a model that takes `length` tokens only: shorter texts are padded, which it sees or not."""
    spec = at(length)
    _check_same(at(length), spec)  # no table of positions is a random number, drawn anew in each call
    pools_padding = spec.head.pooling in ("mean", "max") and not spec.head.pooling_masked
    # A language model sees no padding behind a text either, but Keras's own takes this length alone.
    sees_padding = spec.mask == "none" or pools_padding
    return replace(spec, max_length=length, fixed_length=length if sees_padding else None)


def _with_long_mask(at: AtLength, probe: TransformerSpec, sequence_length: int | None) -> TransformerSpec:
    """Return a language model without positions, bounded to a length at which its mask was seen to be causal throughout.

    A window that is longer than the probes shows at that length.
    """
    longest = max(sequence_length or _COMPUTED_ROWS, _PROBES[1])
    _check_same(probe, at(longest))
    return replace(probe, max_length=longest)


def _whole_table(
    model: Any,
    at: AtLength,
    probe: tuple[int, TransformerSpec],
    table_of: Callable[[TransformerSpec], Float32 | None],
    sequence_length: int | None,
) -> tuple[int, TransformerSpec]:
    """Return how many rows a position table has, and the spec at that length.

    Args:
        model: The model.
        at: Reads it at one length.
        probe: A length that it was read at, and the spec.
        table_of: Returns the table of a spec.
        sequence_length: What the user wants.
    """
    lowest, best = probe
    start = table_of(best)
    for rows in _rows_of_variables(model, start) if start is not None else ():
        spec = _at_or_none(at, rows)
        if spec is not None:
            return rows, spec
    highest = max(sequence_length or _COMPUTED_ROWS, lowest)
    middle = highest
    while lowest < highest:  # computed rows have no end; a table that is no variable has one, which only a try finds
        attempt = _at_or_none(at, middle)
        if attempt is None:
            highest = middle - 1
        else:
            lowest, best = middle, attempt
        middle = (lowest + highest + 1) // 2
    return lowest, best


def _rows_of_variables(model: Any, start: Float32) -> list[int]:
    """Return the numbers of rows of the model's variables that begin with the rows `start`, ``(n, E)``; largest first."""
    keras = import_keras()
    found = set()
    for variable in model.weights:
        shape = tuple(variable.shape)
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) == 2 and shape[0] >= start.shape[0] and shape[1] == start.shape[1]:
            rows = keras.ops.convert_to_numpy(variable).reshape(shape)[: start.shape[0]]
            # In mixed precision, the model rounds its table before it adds it.
            if any(np.array_equal(rows.astype(dtype).astype(np.float32), start) for dtype in _COMPUTE_DTYPES):
                found.add(int(shape[0]))
    return sorted(found, reverse=True)


def _at_or_none(at: AtLength, length: int) -> TransformerSpec | None:
    """Return the spec at a length; None where the model has no such length."""
    try:
        return at(length)
    except OtherConstantMask:  # a window shows only where it is shorter than the text: no bound of the length
        raise
    except NotRecognised:
        return None


def _check_same(shorter: TransformerSpec, longer: TransformerSpec) -> None:
    """Refuse two captures that differ in more than the length of the position tables."""
    tables = [(table_of(shorter), table_of(longer)) for table_of in (_positions, _source_positions)]
    if any((start is None) != (table is None) for start, table in tables) or not _agree(
        _without_positions(shorter), _without_positions(longer)
    ):
        raise NotRecognised("the model does not compute the same each time, or at each length")
    for start, table in tables:
        if start is not None and table is not None and not np.array_equal(start, table[: start.shape[0]]):
            raise NotRecognised("what is added to the token embeddings is not the same each time, or at each length")


def _positions(spec: TransformerSpec) -> Float32 | None:
    return spec.embeddings.position


def _source_positions(spec: TransformerSpec) -> Float32 | None:
    source = None if spec.source is None else spec.source.embeddings
    return None if source is None else source.position


def _without_positions(spec: TransformerSpec) -> TransformerSpec:
    spec = replace(spec, embeddings=replace(spec.embeddings, position=None), max_length=None)
    if spec.source is None or spec.source.embeddings is None:
        return spec
    embeddings = replace(spec.source.embeddings, position=None)
    return replace(spec, source=replace(spec.source, embeddings=embeddings, max_length=None))


def _agree(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left is right  # read once for all captures
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(_agree, left, right))
    if is_dataclass(left):
        return type(left) is type(right) and all(
            _agree(getattr(left, entry.name), getattr(right, entry.name)) for entry in fields(left)
        )
    return bool(left == right)
