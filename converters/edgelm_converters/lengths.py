"""How long the inputs of an artifact may be, and which lengths a fixed-shape file carries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgelm.bundle.manifest import Padding
from edgelm.errors import InputError
from edgelm_converters.reference import Reference
from edgelm_converters.samples import make_samples, pad_batch
from edgelm_converters.spec import TransformerSpec

if TYPE_CHECKING:
    from edgelm_converters.tokens import Tokens

__all__ = ["Lengths", "buckets", "choose_lengths"]

_DEFAULT_LENGTH = 128
_SHORTEST_BUCKET = 16
_SHORTEST_REFERENCE = 24


@dataclass(frozen=True)
class Lengths:
    """The lengths of an artifact.

    Attributes:
        padding: As in the manifest.
        buckets: Lengths of a fixed-shape file's signatures, ascending; empty where there is no sequence.
        maximum: The most tokens; None where there is no sequence.
        notes: For the manifest: what was decided for the user, and why.
        fixed: Whether every file has fixed shapes, as an accelerator compiles them, and not only those that always do.
    """

    padding: Padding
    buckets: tuple[int, ...]
    maximum: int | None
    notes: tuple[str, ...]
    fixed: bool = False

    def of_one_shape(self) -> Lengths:
        """Return the longest length alone, at which every file is fixed."""
        return self if self.maximum is None else replace(self, buckets=(self.maximum,), fixed=True)

    @property
    def reference(self) -> tuple[int, ...]:
        """The lengths to call Keras with: other ones than `buckets` where padding is masked.

        Keras then pads a text otherwise than the artifact does, and a model whose padding changes its answer shows.
        """
        if self.maximum is None or self.padding != "masked":
            return self.buckets
        return buckets(self.maximum, shortest=_SHORTEST_REFERENCE)


def buckets(maximum: int, *, shortest: int = _SHORTEST_BUCKET) -> tuple[int, ...]:
    """Return 16, 32, 64, … below `maximum`, then `maximum`.

    >>> buckets(100)
    (16, 32, 64, 100)
    """
    lengths = []
    length = shortest
    while length < maximum:
        lengths.append(length)
        length *= 2
    return (*lengths, maximum)


def choose_lengths(reference: Reference, spec: TransformerSpec | None, tokens: Tokens, asked: int | None) -> Lengths:
    """Choose the lengths of an artifact.

    Shorter buckets are offered only where padding cannot change the answer: known from a spec's masks, measured on a traced
    model.

    Raises:
        InputError: More tokens are asked for than the model takes.
    """
    port = reference.token_input
    if port is None:
        if asked is not None and all(None not in entry.shape[1:] for entry in reference.inputs):
            raise InputError(
                f"The model has no sequence of tokens of free length, so --sequence-length {asked} has no meaning."
            )
        return Lengths("full" if asked else "none", (asked,) if asked else (), asked, ())
    fixed = port.shape[1] if spec is None else spec.fixed_length
    bounds = {
        "the model's position table": spec.max_length if spec else None,
        "the model's fixed input": fixed,
    }
    for what, bound in bounds.items():
        if asked is not None and bound is not None and asked > bound:
            raise InputError(f"--sequence-length {asked} is more than {what} has: {bound}.")
    if fixed is not None:
        if asked is not None and asked != fixed:
            raise InputError(
                f"The model takes exactly {fixed} tokens and sees its padding: "
                f"--sequence-length {asked} would change its answers."
            )
        return Lengths(
            "full", (fixed,), fixed, (f"The model sees its padding: every text is filled up to {fixed} tokens.",)
        )
    maximum, notes = _maximum(spec, tokens, asked)
    masked = _ignores_padding(spec) if spec else _padding_is_invisible(reference, tokens, maximum)
    if not masked:
        note = f"Padding changes the model's answer: every text is filled up to {maximum} tokens."
        return Lengths("full", (maximum,), maximum, (*notes, note))
    return Lengths("masked", buckets(maximum), maximum, notes)


def _ignores_padding(spec: TransformerSpec) -> bool:
    return spec.mask != "none" and (spec.head.pooling in ("first", "none") or spec.head.pooling_masked)


def _maximum(spec: TransformerSpec | None, tokens: Tokens, asked: int | None) -> tuple[int, tuple[str, ...]]:
    if asked is not None:
        return asked, ()
    bounds = [bound for bound in (tokens.max_length, spec.max_length if spec else None) if bound is not None]
    if tokens.max_length is not None:
        return min(bounds), ()
    maximum = min([*bounds, _DEFAULT_LENGTH])
    return maximum, (f"Texts are cut after {maximum} tokens; --sequence-length sets another length.",)


def _padding_is_invisible(reference: Reference, tokens: Tokens, maximum: int) -> bool:
    """Measure whether a traced model gives the same answer to an input with and without padding."""
    samples = make_samples(
        reference, None, tokenizer=None, labels=None, vocabulary_size=tokens.vocabulary_size, max_length=maximum // 2
    ).samples[::6]
    for sample in samples:
        plain = reference.run(sample.inputs)
        padded = reference.run(pad_batch([sample], reference.inputs, maximum, tokens.pad_id))
        for name, value in plain.items():
            other = padded[name]
            if other.shape != value.shape:
                other = other[:, : value.shape[1]]
            if not np.allclose(other, value, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(value).max()))):
                return False
    return True
