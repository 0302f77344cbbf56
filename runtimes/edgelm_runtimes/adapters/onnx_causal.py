"""Language models in ONNX Runtime, on its CPU provider: the cache stays where it is, and grows with the text.

The same memory is bound as past and as present keys and values, so that ``GroupQueryAttention`` writes the new positions
into it: nothing is copied at a token. The cache begins with 256 positions and doubles, which copies it once. Its length costs
memory rather than time: with 6 layers of 6 heads (width 288, int4, one thread, ONNX Runtime 1.32) a token takes 1.7 ms and a
prompt of 200 takes 40 ms with 256 and with 8192 positions, but the prompt's scores are laid out as long as the cache, and the
process has 155 MB with the one and 237 MB with the other.

Long calls run in chunks of 512 tokens, which bounds those scores: 512 rows of 8192 for each head.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port, Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError
from edgelm_runtimes.adapters.onnx_session import RUNTIME, SIGNATURE, OnnxSession, open_session
from edgelm_runtimes.adapters.shared import check_names, closed, first_line, unknown_signature
from edgelm_runtimes.program import Logits, ProgramFacts, ProgramOptions

__all__ = ["open_causal"]

_IDS, _MASK, _LOGITS, _COUNT = "input_ids", "attention_mask", "logits", "logits_count"
_CONTEXT, _NEEDS = "edgelm.context_length", "edgelm.onnxruntime"
_FIRST_LENGTH = 256
_CHUNK = 512
_CPU = ("cpu", 0)

Float32 = NDArray[np.float32]


class _OnnxCausal:
    """A `CausalProgram` on an `InferenceSession`, whose inputs and outputs are NumPy's memory."""

    def __init__(self, opened: OnnxSession, signature: Signature, context_length: int) -> None:
        cache = signature.cache
        if cache is None:
            raise RuntimeUnavailableError(
                f"onnx: the signature '{signature.name}' has no cache, so the file is no language model: convert it again."
            )
        self._session: Any = opened.session
        self._failures = opened.failures
        self._facts = opened.facts
        self._context = context_length
        self._vocabulary = int(signature.outputs[0].shape[-1] or 0)
        self._binding: Any = opened.session.io_binding()
        self._names = [
            (past.replace("{i}", str(index)), present.replace("{i}", str(index)))
            for index in range(cache.layers)
            for past, present in zip(cache.inputs, cache.outputs, strict=True)
        ]
        self._heads, self._width = int(cache.shape[1] or 0), int(cache.shape[3] or 0)
        self._caches: list[Float32] = []
        self._length = 0  # positions that the cache has room for
        self._computed = 0  # positions that are in it, without a gap
        self._ids = np.zeros((1, _CHUNK), np.int64)
        self._mask = np.ones((1, context_length), np.int64)
        self._count = np.ones(1, np.int64)
        self._row: Float32 = np.zeros((1, 1, self._vocabulary), np.float32)
        # NumPy takes 2 µs to tell where an array lies.
        self._ids_at, self._mask_at, self._row_at = (array.ctypes.data for array in (self._ids, self._mask, self._row))
        self._bound: tuple[int, int] | None = None  # tokens and scores of the last run
        # The first output that is bound: `_run` finds it there.
        self._binding.bind_output(_LOGITS, *_CPU, np.float32, self._row.shape, self._row_at)
        self._binding.bind_input(_COUNT, *_CPU, np.int64, (1,), self._count.ctypes.data)

    @property
    def facts(self) -> ProgramFacts:
        """See `CausalProgram.facts`."""
        return self._facts

    @property
    def context_length(self) -> int:
        """See `CausalProgram.context_length`."""
        return self._context

    @property
    def vocabulary_size(self) -> int:
        """See `CausalProgram.vocabulary_size`."""
        return self._vocabulary

    def forward(self, ids: NDArray[np.int32], start: int, *, logits: Logits = "last") -> Float32:
        """See `CausalProgram.forward`."""
        if self._session is None:
            raise closed(RUNTIME)
        self._check(ids, start)
        total = len(ids)
        self._reserve(start + total, keep=start)
        # A run that fails leaves the cache undefined from here on.
        self._computed = start
        parts: list[Float32] = []
        for first in range(0, total, _CHUNK):
            part = ids[first : first + _CHUNK]
            scored = len(part) if logits == "all" else int(logits == "last" and first + len(part) == total)
            parts.append(self._run(part, start + first, scored))
        self._computed = start + total
        if logits == "all":
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        return parts[-1].reshape(-1)

    def close(self) -> None:
        """See `CausalProgram.close`."""
        self._session = self._binding = None
        self._caches = []

    def _run(self, ids: NDArray[np.int32], start: int, scored: int) -> Float32:
        """Compute one chunk; return the scores ``(scored, V)`` of its last tokens.

        Beside ONNX Runtime's own time, a token takes some 100 µs here (AMD EPYC, caches cold after each run), 4 % of what a
        model of 15 M weights in int4 takes. Most of it is one `bind_input`.
        """
        count, binding = len(ids), self._binding
        self._ids[0, :count] = ids
        self._count[0] = scored
        if self._bound != (count, scored) or scored != 1:
            binding.bind_input(_IDS, *_CPU, np.int64, (1, count), self._ids_at)
            if scored == 1:
                binding.bind_output(_LOGITS, *_CPU, np.float32, self._row.shape, self._row_at)
            else:
                # The file says that there is one row (as ONNX Runtime GenAI wants it), and memory of another shape is
                # refused: ONNX Runtime makes its own, anew each time, as it would take the last one for given memory.
                binding.bind_output(_LOGITS, "cpu")
            self._bound = count, scored
        binding.bind_input(_MASK, *_CPU, np.int64, (1, start + count), self._mask_at)
        try:
            self._session.run_with_iobinding(binding)
            if scored <= 1:
                return self._row.reshape(1, -1)[:scored]
            made: Float32 = binding.get_outputs()[0].numpy()
        except self._failures as error:
            raise ExecutionError(f"onnx failed: {first_line(error)}") from error
        return made.reshape(scored, self._vocabulary)

    def _check(self, ids: NDArray[np.int32], start: int) -> None:
        """Check a call before it reaches native code.

        Raises:
            ExecutionError: It makes no sense.
        """
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
            raise ExecutionError(
                f"A call takes at least one token id, int32 (n,), and got {ids.dtype} {list(ids.shape)}."
            )
        lowest, highest = (int(ids[0]),) * 2 if len(ids) == 1 else (int(ids.min()), int(ids.max()))
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
        if start + len(ids) > self._context:
            raise ExecutionError(
                f"{start + len(ids)} positions are more than the model's context of {self._context}: cut the text, or convert "
                "the model with a longer one."
            )

    def _reserve(self, total: int, *, keep: int) -> None:
        """Make room for `total` positions, of which the first `keep` are kept."""
        if total <= self._length:
            return
        length = max(self._length, min(_FIRST_LENGTH, self._context))
        while length < total:
            length = min(2 * length, self._context)
        shape = (1, self._heads, length, self._width)
        try:
            caches: list[Float32] = [np.zeros(shape, np.float32) for _ in self._names]
        except MemoryError as error:
            raise ExecutionError(
                f"There is no memory for a cache of {length} positions ({4 * math.prod(shape) * len(self._names)} bytes): "
                "use a shorter text, or a smaller model."
            ) from error
        for index, (past, present) in enumerate(self._names):
            if keep:
                caches[index][:, :, :keep] = self._caches[index][:, :, :keep]
            place = caches[index].ctypes.data
            self._binding.bind_input(past, *_CPU, np.float32, shape, place)
            self._binding.bind_output(present, *_CPU, np.float32, shape, place)
        self._caches = caches  # only now: until here the binding points into the older ones
        self._length = length


def open_causal(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> _OnnxCausal:
    """Open a language model's ONNX file, as `edgelm_converters.emit.onnx_decoder` writes it.

    The longest context is read from the file's metadata.

    Raises:
        RuntimeUnavailableError: ONNX Runtime refuses it, computes it wrongly, or it is not what the manifest describes.
    """
    if len(signatures) != 1 or signatures[0].name != SIGNATURE:
        raise unknown_signature(RUNTIME, ", ".join(signature.name for signature in signatures), [SIGNATURE])
    opened = open_session(file, options)
    session, signature = opened.session, signatures[0]
    check_names(
        RUNTIME,
        _with_cache(signature),
        [put.name for put in session.get_inputs()],
        [put.name for put in session.get_outputs()],
    )
    metadata = session.get_modelmeta().custom_metadata_map
    optional = [put.name for put in session.get_overridable_initializers()]
    if _COUNT not in optional or not metadata.get(_CONTEXT, "").isdecimal():
        raise RuntimeUnavailableError(
            f"onnx: {file.name} has no input '{_COUNT}' or does not say its '{_CONTEXT}': it was not written by edgelm. "
            "Convert the model again."
        )
    _check_version(file, opened.facts.runtime_version, metadata.get(_NEEDS))
    return _OnnxCausal(opened, signature, int(metadata[_CONTEXT]))


def _with_cache(signature: Signature) -> Signature:
    """Return the signature with its cache among the inputs and outputs."""
    cache = signature.cache
    if cache is None:
        return signature
    names = [
        [name.replace("{i}", str(index)) for index in range(cache.layers) for name in pair]
        for pair in (cache.inputs, cache.outputs)
    ]
    ports = [tuple(Port(name, cache.dtype, cache.shape, "raw") for name in group) for group in names]
    return dataclasses.replace(
        signature, inputs=(*signature.inputs, *ports[0]), outputs=(*signature.outputs, *ports[1])
    )


def _check_version(file: Path, installed: str, needed: str | None) -> None:
    """Check that the installed ONNX Runtime computes the file rightly.

    Raises:
        RuntimeUnavailableError: It is too old.
    """
    if needed is not None and _release(installed) < _release(needed):
        raise RuntimeUnavailableError(
            f"{file.name} has layers with a sliding window, and onnxruntime {installed} lets them see one position too many: "
            f"pip install 'onnxruntime>={needed}'"
        )


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; of an unknown one, none that is too old."""
    numbers = version.split(".")[:2]
    return tuple(int(number) for number in numbers) if all(number.isdecimal() for number in numbers) else (1 << 30,)
