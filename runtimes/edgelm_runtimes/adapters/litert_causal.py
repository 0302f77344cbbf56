"""Language models in LiteRT: the caches stay inside the runtime, and are updated where they are.

A cache's buffer is input and output of every call, so that nothing of it is copied: with LiteRT 2.3.0 a token of a model with
25 MB of caches takes 0.03 ms longer for them, and 16 ms through `Interpreter`'s signature runners, which copy.

A file may hold the same model for several cache lengths. Attention reads the whole of a cache, used or not, so the smallest
one that holds the positions is taken. When it is outgrown, what it holds is copied into the next one, once. It goes back to a
smaller one only where nothing is to be kept, at the position 0. Between calls there is one set of caches.

Measured on one AVX-512 core (6 layers of width 288, vocabulary 32,000, int8 weights, caches of 128, 256 and 512): a token takes
2.3, 2.6 and 3.0 ms, of which 0.1 ms is spent outside of LiteRT's own run. Twelve signatures take 66 ms to load, and 67 MB with
three caches and all buffers; three of one cache 32 ms and 48 MB. The packed weights (15 MB) are in memory once, the file's own
not at all; of float16 weights that is one float32 copy for all signatures. Without the cache of packed weights the twelve
take 179 ms and 180 MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import CacheRecord, Port, Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError
from edgelm_runtimes.adapters.litert import check_signature, open_model
from edgelm_runtimes.adapters.shared import closed, first_line, version
from edgelm_runtimes.program import Logits, ProgramFacts, ProgramOptions

__all__ = ["open_causal", "plan"]

_RUNTIME = "litert"
_DISTRIBUTION = "ai-edge-litert"


@dataclass(frozen=True)
class _Costs:
    """How long calls take, in the time of one token of a longer call: what cuts of a sequence are compared by.

    Attributes:
        call: Of a call, on top of its tokens.
        step: Of a decoding step.
    """

    call: int
    step: int


# On the model and core above, with the cache of 512: a step takes 3.0 ms; 16 tokens without scores 4.0 and 128 of them 23.5;
# 8 tokens with scores 5.5.
_PREFILL, _VERIFY = _Costs(call=12, step=20), _Costs(call=7, step=8)


@dataclass(frozen=True)
class _Lengths:
    """The signatures for one cache length.

    Attributes:
        length: Positions.
        cache: Its tensors.
        decode: Takes one token, and gives the scores of the next.
        prefill: By ascending number of tokens.
        verify: Likewise.
    """

    length: int
    cache: CacheRecord
    decode: Signature
    prefill: tuple[Signature, ...]
    verify: tuple[Signature, ...]


@dataclass(frozen=True)
class _Call:
    """One signature with its buffers bound: only tokens, positions and scores pass between us and the runtime."""

    index: int
    tokens: Any
    positions: Any
    inputs: list[Any]
    outputs: list[Any]
    scores: Any
    ids: NDArray[np.int32]
    places: NDArray[np.int32]


class _LiteRtCausal:
    """A `CausalProgram` on a `CompiledModel`."""

    def __init__(self, model: Any, lengths: tuple[_Lengths, ...], vocabulary_size: int, facts: ProgramFacts) -> None:
        self._model: Any = model
        self._lengths = lengths
        self._vocabulary_size = vocabulary_size
        self._facts = facts
        self._computed = 0
        self._current = lengths[0]
        self._caches: dict[str, Any] = {}
        self._calls: dict[str, _Call] = {}

    @property
    def facts(self) -> ProgramFacts:
        """See `CausalProgram.facts`."""
        return self._facts

    @property
    def context_length(self) -> int:
        """See `CausalProgram.context_length`."""
        return self._lengths[-1].length

    @property
    def vocabulary_size(self) -> int:
        """See `CausalProgram.vocabulary_size`."""
        return self._vocabulary_size

    def forward(self, ids: NDArray[np.int32], start: int, *, logits: Logits = "last") -> NDArray[np.float32]:
        """See `CausalProgram.forward`."""
        if self._model is None:
            raise closed(_RUNTIME)
        self._check(ids, start)
        try:
            self._make_room(start, start + len(ids))
            # A call that fails may have written some of its positions.
            self._computed = start
            scores = self._forward(ids, start, logits)
        except (RuntimeError, ValueError) as error:
            raise ExecutionError(f"litert failed at the position {start}: {first_line(error)}") from error
        self._computed = start + len(ids)
        return scores

    def close(self) -> None:
        """See `CausalProgram.close`."""
        self._calls.clear()  # before the model that they belong to
        self._caches.clear()
        self._model = None

    def _check(self, ids: NDArray[np.int32], start: int) -> None:
        if ids.ndim != 1 or not len(ids) or ids.dtype != np.int32:
            raise ExecutionError(
                f"A language model takes int32 ids (n,) with n >= 1, not {ids.dtype} {list(ids.shape)}."
            )
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self._vocabulary_size:
            raise ExecutionError(
                f"The id {lowest if lowest < 0 else highest} is outside of the vocabulary, 0 to "
                f"{self._vocabulary_size - 1}: the tokenizer and the model do not belong together."
            )
        if not 0 <= start <= self._computed:
            raise ExecutionError(
                f"The position {start} was asked for, and {self._computed} are computed: begin at one of those, or at the next."
            )
        if start + len(ids) > self.context_length:
            raise ExecutionError(
                f"{len(ids)} tokens from the position {start} on do not fit in the context of {self.context_length}: "
                "shorten the prompt, or begin anew with its end."
            )

    def _make_room(self, start: int, end: int) -> None:
        """Have caches that hold the positions up to `end`, with what stands before `start` in them."""
        fitting = next(lengths for lengths in self._lengths if lengths.length >= end)
        if self._caches and ((start > 0 and self._current.length >= end) or fitting is self._current):
            return
        caches: dict[str, Any] = {}
        for name in _cache_names(fitting.cache):
            buffer = self._model.create_input_buffer_by_name(fitting.decode.name, name)
            content = np.zeros(_shape(fitting.cache), np.float32)  # a NaN in a hidden position would reach the answer
            if start:
                content[:, :, :start] = self._read(self._caches[name], start)
            buffer.write(content)
            caches[name] = buffer
        # Only now: where there was no memory for the longer caches, the shorter ones still hold what they held.
        self._calls.clear()
        self._caches = caches
        self._current = fitting

    def _read(self, buffer: Any, count: int) -> NDArray[np.float32]:
        shape = _shape(self._current.cache)
        content: NDArray[np.float32] = buffer.read(int(np.prod(shape)), np.float32)
        return content.reshape(shape)[:, :, :count]

    def _forward(self, ids: NDArray[np.int32], start: int, logits: Logits) -> NDArray[np.float32]:
        current = self._current
        if logits == "all":
            rows: list[NDArray[np.float32]] = [
                self._scores(self._step(signature, part, place), len(part))
                for signature, part, place in self._cut(ids, start, current.verify, _VERIFY)
            ]
            return rows[0] if len(rows) == 1 else np.concatenate(rows)
        # A prefill gives no scores: the last token is a decoding step where they are wanted.
        end = len(ids) - int(logits == "last")
        if end:
            for signature, part, place in self._cut(ids[:end], start, current.prefill, _PREFILL):
                self._step(signature, part, place)
        if logits == "none":
            return np.empty(0, np.float32)
        return self._scores(self._step(current.decode, ids[end:], start + end), 1).reshape(-1)

    def _cut(
        self, ids: NDArray[np.int32], start: int, signatures: tuple[Signature, ...], costs: _Costs
    ) -> Iterator[tuple[Signature, NDArray[np.int32], int]]:
        """Yield the calls that compute a sequence: signature, ids, and position of the first of them."""
        by_count = {signature.sequence_length or 1: signature for signature in signatures}
        by_count[1] = self._current.decode
        place = 0
        for count in plan(sorted(by_count), len(ids), self._current.length - start, costs.call, costs.step):
            yield by_count[count], ids[place : place + count], start + place
            place += count

    def _step(self, signature: Signature, ids: NDArray[np.int32], start: int) -> _Call:
        """Run one signature; what it takes beyond the ids is padding, that nothing sees and the next call overwrites."""
        call = self._calls.get(signature.name)
        if call is None:
            call = self._calls[signature.name] = self._bind(signature)
        count = len(ids)
        call.ids[0, :count] = ids
        call.places[:count] = np.arange(start, start + count)
        if count < len(call.places):
            call.ids[0, count:] = 0
            call.places[count:] = 0  # a position that every model has
        call.tokens.write(call.ids)
        call.positions.write(call.places)
        self._model.run_by_index(call.index, call.inputs, call.outputs)
        return call

    def _scores(self, call: _Call, count: int) -> NDArray[np.float32]:
        size = call.ids.shape[1] * self._vocabulary_size
        scores: NDArray[np.float32] = call.scores.read(size, np.float32)
        return scores.reshape(-1, self._vocabulary_size)[:count]

    def _bind(self, signature: Signature) -> _Call:
        name, count = signature.name, signature.sequence_length or 1
        names = self._model.get_signature_list()[name]
        inputs = dict(self._caches)
        for port in signature.inputs:
            inputs[port.name] = self._model.create_input_buffer_by_name(name, port.name)
        outputs = dict(self._caches)
        for port in signature.outputs:
            outputs[port.name] = self._model.create_output_buffer_by_name(name, port.name)
        tokens, positions = (_port(signature, role) for role in ("token_ids", "positions"))
        return _Call(
            self._model.get_signature_index(name),
            inputs[tokens.name],
            inputs[positions.name],
            [inputs[known] for known in names["inputs"]],
            [outputs[known] for known in names["outputs"]],
            outputs[signature.outputs[0].name] if signature.outputs else None,
            np.zeros((1, count), np.int32),
            np.zeros(count, np.int32),
        )


def plan(counts: Sequence[int], tokens: int, room: int, call: int, step: int) -> list[int]:
    """Return how a sequence is cut: the tokens that each call takes, of which the last may be padding in part.

    Each time the call that gets the most done for its time, of those that end before the cache does: the runtime would
    write a longer one further to the front, over what is there.

    Args:
        counts: Tokens that a call can take; 1 is among them, a decoding step.
        tokens: To compute.
        room: Positions from the first token to the end of the cache, at least `tokens`.
        call: Cost of a call, in tokens.
        step: Cost of a decoding step, in tokens.
    """
    calls: list[int] = []
    while tokens > 0:
        gains = {count: min(count, tokens) / (count + call if count > 1 else step) for count in counts if count <= room}
        best = max(gains, key=lambda count: (gains[count], count))
        calls.append(best)
        tokens, room = tokens - best, room - best
    return calls


def _shape(cache: CacheRecord) -> tuple[int, ...]:
    return tuple(extent or 0 for extent in cache.shape)


def _cache_names(cache: CacheRecord) -> list[str]:
    return [pattern.format(i=layer) for layer, pattern in itertools.product(range(cache.layers), cache.inputs)]


def _port(signature: Signature, role: str) -> Port:
    return next(port for port in signature.inputs if port.role == role)


def open_causal(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> _LiteRtCausal:
    """Open a TFLite file whose signatures have a cache.

    Raises:
        RuntimeUnavailableError: LiteRT refuses it, or it is not what the manifest describes.
    """
    lengths = _by_length(file, signatures)
    threads = options.threads or 1
    model = open_model(file, threads)
    for signature in signatures:
        check_signature(model, _whole(signature))
    vocabulary_size = lengths[0].decode.outputs[0].shape[-1]
    facts = ProgramFacts(_RUNTIME, version(_DISTRIBUTION), "cpu", threads, "XNNPACK")
    return _LiteRtCausal(model, lengths, vocabulary_size or 0, facts)


def _by_length(file: Path, signatures: tuple[Signature, ...]) -> tuple[_Lengths, ...]:
    """Return the signatures by cache length, ascending.

    Raises:
        RuntimeUnavailableError: A cache has no fixed length, or nothing that decodes with it.
    """
    groups: dict[int, list[Signature]] = {}
    caches: dict[int, CacheRecord] = {}
    for signature in signatures:
        if (
            signature.cache is None
            or signature.cache.length is None
            or signature.cache.inputs != signature.cache.outputs
        ):
            raise RuntimeUnavailableError(
                f"litert runs a language model only with caches of a fixed length, updated in place: '{signature.name}' of "
                f"{file.name} has none. Convert it again with this edgelm."
            )
        groups.setdefault(signature.cache.length, []).append(signature)
        caches[signature.cache.length] = signature.cache
    lengths = []
    for length, group in sorted(groups.items()):
        by_kind = {
            kind: tuple(sorted((s for s in group if s.kind == kind), key=lambda s: s.sequence_length or 1))
            for kind in ("prefill", "decode", "verify")
        }
        if not by_kind["decode"]:
            raise RuntimeUnavailableError(f"{file.name} has no signature that decodes with a cache of {length}.")
        lengths.append(_Lengths(length, caches[length], by_kind["decode"][0], by_kind["prefill"], by_kind["verify"]))
    if not lengths:
        raise RuntimeUnavailableError(
            f"{file.name} has no signature: the manifest and the model do not belong together."
        )
    return tuple(lengths)


def _whole(signature: Signature) -> Signature:
    """Return a signature with the cache among its inputs and outputs, as the file has them."""
    cache = signature.cache
    if cache is None:
        return signature
    ports = tuple(Port(name, cache.dtype, cache.shape, "raw") for name in _cache_names(cache))
    return replace(signature, inputs=signature.inputs + ports, outputs=signature.outputs + ports)
