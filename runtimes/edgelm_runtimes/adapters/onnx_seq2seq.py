"""Encoder-decoders in ONNX Runtime, on its CPU provider: a source is read once, and the cache stays where it is.

What the encoder gives is bound to the decoder as it lies. The cache is NumPy's memory, bound as past and as present keys and
values, so that ``GroupQueryAttention`` writes the new positions into it (`edgelm_runtimes.adapters.onnx_causal` says more). It
begins with 64 positions and doubles.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import CacheRecord, Port, Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError
from edgelm_runtimes.adapters.onnx_session import RUNTIME, OnnxSession, open_session
from edgelm_runtimes.adapters.shared import check_names, closed, first_line, unknown_signature
from edgelm_runtimes.program import ProgramFacts, ProgramOptions

__all__ = ["open_seq2seq"]

_IDS, _POSITIONS, _LOGITS, _MASK = "input_ids", "positions", "logits", "source_mask"
_TARGET, _SOURCE = "edgelm.target_length", "edgelm.source_length"
_FIRST_LENGTH = 64
_UNBOUNDED = 2**31 - 1  # of a source, where the model has no table of positions
_CPU = ("cpu", 0)

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class _OnnxSeq2Seq:
    """A `Seq2SeqProgram` on two `InferenceSession`s, one of which gives what the other one takes."""

    def __init__(
        self,
        encoder: OnnxSession,
        decoder: OnnxSession,
        signatures: tuple[Signature, Signature],
        limits: tuple[int, int],
    ) -> None:
        read, answer = signatures
        cache, crossed = answer.cache, answer.source
        if cache is None or crossed is None:
            raise RuntimeUnavailableError(
                f"onnx: the signature '{answer.name}' has no cache or no source, so the file is no encoder-decoder: "
                "convert it again."
            )
        self._encoder: Any = encoder.session
        self._decoder: Any = decoder.session
        self._failures = decoder.failures
        self._facts = decoder.facts
        self._source_length, self._target_length = limits
        self._source = read.inputs[0]
        self._vocabulary = int(answer.outputs[0].shape[-1] or 0)
        self._reading: Any = self._encoder.io_binding()
        self._binding: Any = self._decoder.io_binding()
        given = _names(crossed, crossed.outputs)
        self._given = [*(port.name for port in read.outputs), *given]
        self._cache_names = list(zip(_names(cache, cache.inputs), _names(cache, cache.outputs), strict=True))
        self._heads, self._width = int(cache.shape[1] or 0), int(cache.shape[3] or 0)
        self._caches: list[Float32] = []
        self._rows = 0  # of the last call of `encode`; 0 before
        self._length = 0  # positions that the caches have room for
        self._computed = 0  # positions that are in them, without a gap
        self._tokens: Int32 = np.zeros((0, 0), np.int32)  # of the last call: the binding points at them
        self._positions = np.arange(self._target_length, dtype=np.int32)
        self._scores: Float32 = np.zeros((0, 1, self._vocabulary), np.float32)

    @property
    def facts(self) -> ProgramFacts:
        """See `Seq2SeqProgram.facts`."""
        return self._facts

    @property
    def source_length(self) -> int:
        """See `Seq2SeqProgram.source_length`."""
        return self._source_length

    @property
    def target_length(self) -> int:
        """See `Seq2SeqProgram.target_length`."""
        return self._target_length

    @property
    def vocabulary_size(self) -> int:
        """See `Seq2SeqProgram.vocabulary_size`."""
        return self._vocabulary

    @property
    def row_counts(self) -> tuple[int, ...] | None:
        """See `Seq2SeqProgram.row_counts`: they are free."""
        return None

    def encode(self, source: Int32 | Float32, lengths: Int32, beams: int) -> None:
        """See `Seq2SeqProgram.encode`."""
        if self._encoder is None:
            raise closed(RUNTIME)
        self._check_source(source, lengths, beams)
        self._rows = self._computed = 0  # a run that fails leaves nothing to answer
        feed: dict[str, NDArray[Any]] = {self._source.name: np.ascontiguousarray(source)}
        if self._source.role == "source_ids":
            mask = np.arange(source.shape[1]) < lengths[:, None]
            # What stands behind a source may be anything, also no id.
            feed = {self._source.name: np.where(mask, source, 0).astype(np.int32), _MASK: mask.astype(np.int32)}
        reading = self._reading
        try:
            for name, array in feed.items():
                reading.bind_cpu_input(name, array)
            for name in self._given:
                reading.bind_output(name, "cpu")
            self._encoder.run_with_iobinding(reading)
            for name, value in zip(self._given, reading.get_outputs(), strict=True):
                self._binding.bind_ortvalue_input(name, value)
        except self._failures as error:
            raise ExecutionError(f"onnx failed: {first_line(error)}") from error
        rows = len(lengths) * beams
        if self._scores.shape[0] != rows:
            self._caches, self._length = [], 0
            self._scores = np.zeros((rows, 1, self._vocabulary), np.float32)
            self._binding.bind_output(_LOGITS, *_CPU, np.float32, self._scores.shape, self._scores.ctypes.data)
        self._rows = rows

    def forward(self, ids: Int32, start: int) -> Float32:
        """See `Seq2SeqProgram.forward`."""
        if self._decoder is None:
            raise closed(RUNTIME)
        self._check(ids, start)
        end = start + ids.shape[1]
        self._reserve(end, keep=start)
        self._computed = start  # a run that fails leaves the cache undefined from here on
        # ``GroupQueryAttention`` goes on with several tokens at once in one row alone.
        step = 1 if start and self._rows > 1 else ids.shape[1]
        for first in range(start, end, step):
            self._run(ids[:, first - start : first - start + step], first)
        self._computed = end
        return self._scores[:, 0]

    def reorder(self, rows: Int32, length: int) -> None:
        """See `Seq2SeqProgram.reorder`."""
        if rows.shape != (self._rows,) or not 0 <= length <= self._computed:
            raise ExecutionError(
                f"{list(rows.shape)} rows were to go on from {length} positions, and there are {self._rows} rows with "
                f"{self._computed} computed."
            )
        moved = np.flatnonzero(rows != np.arange(self._rows))
        for cache in self._caches if moved.size else ():
            cache[moved, :, :length] = cache[rows[moved], :, :length]
        self._computed = length

    def close(self) -> None:
        """See `Seq2SeqProgram.close`."""
        self._encoder = self._decoder = self._reading = self._binding = None
        self._caches = []

    def _run(self, ids: Int32, start: int) -> None:
        """Compute some tokens of every row."""
        binding, count = self._binding, ids.shape[1]
        if self._tokens.shape != ids.shape:
            self._tokens = np.zeros(ids.shape, np.int32)
            binding.bind_input(_IDS, *_CPU, np.int32, ids.shape, self._tokens.ctypes.data)
        self._tokens[:] = ids
        at = self._positions.ctypes.data + start * self._positions.itemsize
        binding.bind_input(_POSITIONS, *_CPU, np.int32, (count,), at)
        try:
            self._decoder.run_with_iobinding(binding)
        except self._failures as error:
            raise ExecutionError(f"onnx failed: {first_line(error)}") from error

    def _check_source(self, source: Int32 | Float32, lengths: Int32, beams: int) -> None:
        """Check sources before they reach native code.

        Raises:
            ExecutionError: They make no sense.
        """
        dimensions = len(self._source.shape)
        if source.ndim != dimensions or source.dtype != self._source.dtype or 0 in source.shape or beams < 1:
            raise ExecutionError(
                f"A source is {self._source.dtype} with {dimensions} axes, none of them empty, and at least 1 beam; "
                f"{source.dtype} {list(source.shape)} and {beams} were given."
            )
        count = source.shape[1]
        if lengths.shape != (len(source),) or lengths.min() < 1 or lengths.max() > count:
            raise ExecutionError(
                f"The lengths {lengths.tolist()} are not those of {len(source)} sources with 1 to {count} tokens."
            )
        if count > self._source_length:
            raise ExecutionError(
                f"A source of {count} tokens is longer than the {self._source_length} that the model takes: cut it."
            )
        if dimensions == 3 and lengths.min() < count:
            raise ExecutionError("Every frame of audio counts: fill up the sound before frames are made of it.")

    def _check(self, ids: Int32, start: int) -> None:
        """Check a call before it reaches native code.

        Raises:
            ExecutionError: It makes no sense.
        """
        if ids.ndim != 2 or ids.shape[0] != self._rows or ids.shape[1] == 0 or ids.dtype.kind not in "iu":
            raise ExecutionError(
                f"A call takes at least one token id for each of {self._rows} rows, int32 (R, n), and got {ids.dtype} "
                f"{list(ids.shape)}: read a source first."
            )
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self._vocabulary:
            bad = lowest if lowest < 0 else highest
            raise ExecutionError(
                f"The token id {bad} is not one of the model's {self._vocabulary}: the tokenizer belongs to another model."
            )
        if not 0 <= start <= self._computed:
            raise ExecutionError(
                f"The position {start} was asked for, and those before it are computed up to {self._computed}: "
                "compute the tokens before it first."
            )
        if start + ids.shape[1] > self._target_length:
            raise ExecutionError(
                f"{start + ids.shape[1]} positions are more than the {self._target_length} of an answer: end it there."
            )

    def _reserve(self, total: int, *, keep: int) -> None:
        """Make room for `total` positions, of which the first `keep` are kept."""
        if total <= self._length:
            return
        length = max(self._length, min(_FIRST_LENGTH, self._target_length))
        while length < total:
            length = min(2 * length, self._target_length)
        shape = (self._rows, self._heads, length, self._width)
        try:
            caches: list[Float32] = [np.zeros(shape, np.float32) for _ in self._cache_names]
        except MemoryError as error:
            raise ExecutionError(
                f"There is no memory for a cache of {length} positions in {self._rows} rows "
                f"({4 * math.prod(shape) * len(self._cache_names)} bytes): use fewer beams, or a smaller model."
            ) from error
        for index, (past, present) in enumerate(self._cache_names):
            if keep:
                caches[index][:, :, :keep] = self._caches[index][:, :, :keep]
            place = caches[index].ctypes.data
            self._binding.bind_input(past, *_CPU, np.float32, shape, place)
            self._binding.bind_output(present, *_CPU, np.float32, shape, place)
        self._caches = caches  # only now: until here the binding points into the older ones
        self._length = length


def open_seq2seq(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> _OnnxSeq2Seq:
    """Open an encoder-decoder's ONNX files, as `edgelm_converters.emit.onnx_seq2seq` writes them.

    Raises:
        RuntimeUnavailableError: ONNX Runtime refuses them, or they are not what the manifest describes.
    """
    by_kind = {signature.kind: signature for signature in signatures}
    if len(signatures) != 2 or set(by_kind) != {"encode", "decode"}:
        raise unknown_signature(RUNTIME, ", ".join(signature.name for signature in signatures), ["encode", "decode"])
    opened = []
    for kind in ("encode", "decode"):
        signature = by_kind[kind]
        path = file if signature.file is None else file.with_name(signature.file)
        session = open_session(path, options)
        inputs, outputs = session.session.get_inputs(), session.session.get_outputs()
        check_names(RUNTIME, _with_caches(signature), [put.name for put in inputs], [put.name for put in outputs])
        opened.append(session)
    encoder, decoder = opened
    limits = [
        each.session.get_modelmeta().custom_metadata_map.get(name, "")
        for each, name in ((encoder, _SOURCE), (decoder, _TARGET))
    ]
    if not limits[1].isdecimal():
        raise RuntimeUnavailableError(
            f"onnx: {file.name} does not say its '{_TARGET}': it was not written by edgelm. Convert the model again."
        )
    longest = int(limits[0]) if limits[0].isdecimal() else _UNBOUNDED
    return _OnnxSeq2Seq(encoder, decoder, (by_kind["encode"], by_kind["decode"]), (longest, int(limits[1])))


def _names(record: CacheRecord, names: tuple[str, str]) -> list[str]:
    """Return the names of all layers' keys and values."""
    return [name.replace("{i}", str(index)) for index in range(record.layers) for name in names]


def _with_caches(signature: Signature) -> Signature:
    """Return the signature with its caches among the inputs and outputs."""
    inputs, outputs = list(signature.inputs), list(signature.outputs)
    for record, taken, given in (
        (signature.source, signature.kind != "encode", signature.kind == "encode"),
        (signature.cache, True, True),
    ):
        if record is None:
            continue
        for wanted, names, ports in ((taken, record.inputs, inputs), (given, record.outputs, outputs)):
            ports.extend(Port(name, record.dtype, record.shape, "raw") for name in _names(record, names) if wanted)
    return dataclasses.replace(signature, inputs=tuple(inputs), outputs=tuple(outputs))
