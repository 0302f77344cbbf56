"""What a TFLite file of an encoder-decoder has, put in order and checked before anything is run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import CacheRecord, Port, Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError

__all__ = ["Bucket", "Plan", "fitting_bucket", "plan_calls", "record_ports", "whole_signature"]


@dataclass(frozen=True)
class Bucket:
    """The signatures for one length of the source.

    Attributes:
        count: Tokens or frames that it reads.
        encode: Reads them.
        decode: Takes one token of each row, by the number of rows.
    """

    count: int
    encode: Signature
    decode: Mapping[int, Signature]


@dataclass(frozen=True)
class Plan:
    """All that a file has, checked.

    Attributes:
        buckets: By the source's length, ascending; all with the same numbers of rows.
        reorder: Changes the rows of one tensor of a cache, by the number of rows.
        target_length: Positions of the caches.
        vocabulary_size: Scores of a step.
    """

    buckets: tuple[Bucket, ...]
    reorder: Mapping[int, Signature]
    target_length: int
    vocabulary_size: int


def plan_calls(file: Path, signatures: tuple[Signature, ...]) -> Plan:
    """Return what a file has.

    Raises:
        RuntimeUnavailableError: Something is missing, or does not go together.
    """
    encoders = sorted((s for s in signatures if s.kind == "encode"), key=lambda s: s.sequence_length or 0)
    decoders = sorted((s for s in signatures if s.kind == "decode"), key=lambda s: s.rows or 1)
    caches = {(s.cache.inputs, s.cache.length, s.cache.shape[1:]) for s in decoders if s.cache is not None}
    in_place = all(
        s.cache is not None and s.cache.inputs == s.cache.outputs and s.cache.length and s.rows for s in decoders
    )
    if not encoders or not decoders or not in_place or len(caches) > 1:
        raise RuntimeUnavailableError(
            f"litert runs an encoder-decoder only with signatures that encode, and with others that decode with caches of one "
            f"fixed length, updated in place: {file.name} has no such. Convert it again with this edgelm."
        )
    buckets = []
    for encode in encoders:
        fitting = [s for s in decoders if s.source == encode.source]
        buckets.append(Bucket(encode.sequence_length or 0, encode, {s.rows or 1: s for s in fitting}))
    counts = {tuple(bucket.decode) for bucket in buckets}
    reorder = {s.rows or 1: s for s in signatures if s.kind == "reorder"}
    (rows, *others) = counts
    if others or not rows or not set(rows) <= {1, *reorder}:
        raise RuntimeUnavailableError(
            f"{file.name} does not decode each length of a source with the same numbers of rows, or cannot reorder them: "
            "the manifest and the model do not belong together."
        )
    decode = buckets[0].decode[rows[0]]
    length = 0 if decode.cache is None else decode.cache.length or 0
    return Plan(tuple(buckets), reorder, length, decode.outputs[0].shape[-1] or 0)


def fitting_bucket(plan: Plan, source: NDArray[Any], lengths: NDArray[np.int32], beams: int) -> Bucket:
    """Return the smallest bucket that a source fits in.

    Raises:
        ExecutionError: What was given does not go together, or not with the file.
    """
    port = plan.buckets[0].encode.inputs[0]
    if source.dtype != port.dtype or (source.shape[:1], source.shape[2:]) != ((1,), port.shape[2:]):
        bands = "".join(f", {extent}" for extent in port.shape[2:])
        raise ExecutionError(
            f"This file reads one source at a time, {port.dtype} [1, n{bands}], not {source.dtype} {list(source.shape)}."
        )
    longest = plan.buckets[-1].count
    if lengths.shape != (1,) or not 1 <= lengths[0] <= source.shape[1]:
        raise ExecutionError(f"A source of {source.shape[1]} cannot have the lengths {lengths.tolist()}.")
    if beams not in plan.buckets[0].decode:
        raise ExecutionError(
            f"This file answers with {', '.join(map(str, plan.buckets[0].decode))} rows of a source, not with {beams}: "
            "convert the model again with that many beams."
        )
    if lengths[0] > longest:
        raise ExecutionError(f"A source of {lengths[0]} is longer than the {longest} that this file reads.")
    bucket = next(bucket for bucket in plan.buckets if bucket.count >= lengths[0])
    if not bucket.encode.outputs and bucket.count != lengths[0]:
        counts = ", ".join(str(bucket.count) for bucket in plan.buckets)
        raise ExecutionError(
            f"This file hides no padding, so that a source has exactly {counts} frames, not {lengths[0]}: fill it up."
        )
    return bucket


def record_ports(record: CacheRecord | None, *, outputs: bool) -> list[Port]:
    """Return the tensors of a cache, or of a source's keys and values."""
    if record is None:
        return []
    names = record.outputs if outputs else record.inputs
    pairs = itertools.product(range(record.layers), names)
    return [Port(name.format(i=layer), record.dtype, record.shape, "raw") for layer, name in pairs]


def whole_signature(signature: Signature) -> Signature:
    """Return a signature with the cache and the source among its inputs and outputs, as the file has them."""
    source, cache = signature.source, signature.cache
    if signature.kind == "encode":
        return replace(signature, outputs=(*signature.outputs, *record_ports(source, outputs=True)))
    inputs = (*signature.inputs, *record_ports(source, outputs=False), *record_ports(cache, outputs=False))
    return replace(signature, inputs=inputs, outputs=(*signature.outputs, *record_ports(cache, outputs=True)))
