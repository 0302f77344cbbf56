"""What a student is taught with: samples as token ids, and batches of them in an order that a seed decides.

Dimensions: ``N`` samples, ``B`` samples of a batch, ``n`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port
from edgelm.errors import InputError
from edgelm_converters.data import Dataset
from edgelm_converters.reference import Reference
from edgelm_converters.samples import make_samples
from edgelm_converters.spec import TransformerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Batch", "Lessons", "classify_lessons", "inputs_of", "language_lessons"]

_NEIGHBOURS = 16  # batches among which samples are sorted by length: less padding, and still another order each epoch
_UNKNOWN = -1

Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples side by side.

    Attributes:
        rows: Which samples they are, ``(B,)``.
        ids: int32 ``(B, n)``.
        segments: int32 ``(B, n)``.
        real: int32 ``(B, n)``: 1 where a token counts.
        labels: int32 ``(B,)``; -1 where it is not known.
    """

    rows: NDArray[np.intp]
    ids: Ids
    segments: Ids
    real: Ids
    labels: Ids


@dataclass(frozen=True, eq=False)
class Lessons:
    """Samples.

    Attributes:
        name: Where they are from.
        ids: int32 ``(n,)`` each.
        segments: int32 ``(n,)`` each.
        labels: int32 ``(N,)``; -1 where it is not known.
        lengths: What samples are filled up to: the shortest that fits; growing.
        pad_id: The id that fills up.
    """

    name: str
    ids: tuple[Ids, ...]
    segments: tuple[Ids, ...]
    labels: Ids
    lengths: tuple[int, ...]
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        """Whether some label is known."""
        return bool((self.labels != _UNKNOWN).any())

    def batch(self, rows: NDArray[np.intp]) -> Batch:
        """Return samples as a batch."""
        longest = max(len(self.ids[row]) for row in rows)
        length = next(length for length in self.lengths if length >= longest)
        ids = np.full((len(rows), length), self.pad_id, np.int32)
        segments, real = np.zeros_like(ids), np.zeros_like(ids)
        for place, row in enumerate(rows):
            count = len(self.ids[row])
            ids[place, :count], segments[place, :count], real[place, :count] = self.ids[row], self.segments[row], 1
        return Batch(rows, ids, segments, real, self.labels[rows])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, as they come."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))

    def shuffled(self, batch_size: int, seed: int, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield every sample once, in the order of an epoch, without the first `skip` batches.

        Samples of like length are put into one batch.
        """
        generator = np.random.default_rng((seed, epoch))
        order = generator.permutation(len(self))
        chunk = batch_size * _NEIGHBOURS
        sizes = np.array([len(ids) for ids in self.ids])
        batches = []
        for start in range(0, len(order), chunk):
            near = order[start : start + chunk]
            near = near[np.argsort(sizes[near], kind="stable")]
            batches += [near[first : first + batch_size] for first in range(0, len(near), batch_size)]
        for index in generator.permutation(len(batches))[skip:]:
            yield self.batch(batches[index])

    def batches(self, batch_size: int) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self) // batch_size)


def inputs_of(spec: TransformerSpec, batch: Batch) -> dict[str, Ids]:
    """Return a batch as a spec names its inputs."""
    inputs = {spec.token_input: batch.ids}
    if spec.mask_input is not None:
        inputs[spec.mask_input] = batch.real
    if spec.segment_input is not None:
        inputs[spec.segment_input] = batch.segments
    return inputs


def classify_lessons(
    dataset: Dataset,
    reference: Reference,
    tokenizer: Tokenizer | None,
    *,
    labels: Sequence[str] | None,
    lengths: Sequence[int],
    pad_id: int,
) -> Lessons:
    """Return a data set as lessons for a model that answers a text as a whole, or token by token.

    Args:
        dataset: Texts, or arrays by the names of the model's inputs.
        reference: The model whose inputs the arrays are named after.
        tokenizer: Turns texts into ids, and cuts them; needed where the data are texts.
        labels: Names of the classes, where the data name them.
        lengths: What samples are filled up to.
        pad_id: The id that fills up.

    Raises:
        InputError: The data do not fit the model.
    """
    samples = make_samples(
        reference, dataset, tokenizer=tokenizer, labels=labels, vocabulary_size=None, max_length=max(lengths)
    ).samples
    names = {port.role: port.name for port in reference.inputs}
    if "features" in names or "token_ids" not in names:
        raise InputError(
            f"The model takes '{_features(reference.inputs)}', and a student is taught with token ids alone."
        )
    ids, segments = [], []
    for number, sample in enumerate(samples, 1):
        row = _real_part({role: sample.inputs[name][0] for role, name in names.items()}, dataset.name, number)
        if len(row[0]) > max(lengths):
            raise InputError(
                f"{dataset.name}: sample {number} has {len(row[0])} tokens; the model takes {max(lengths)}."
            )
        ids.append(row[0])
        segments.append(row[1])
    known = np.array([_UNKNOWN if sample.label is None else sample.label for sample in samples], np.int32)
    return Lessons(dataset.name, tuple(ids), tuple(segments), known, tuple(lengths), pad_id)


def language_lessons(dataset: Dataset, tokenizer: Tokenizer | None, *, length: int, pad_id: int) -> Lessons:
    """Return texts as lessons for a language model: one after the other, cut into sequences of `length` tokens.

    Raises:
        InputError: The data hold no texts, or give no sequence of two tokens.
    """
    if dataset.texts is None or tokenizer is None:
        why = "holds arrays" if dataset.texts is None else "holds texts, and there is no tokenizer"
        raise InputError(f"{dataset.name} {why}: a language model is taught with texts and a tokenizer (--tokenizer).")
    encodings = tokenizer.encode_batch(list(dataset.texts))
    stream = np.concatenate([np.asarray(encoding.ids, np.int32) for encoding in encodings])
    pieces = [stream[start : start + length] for start in range(0, len(stream), length)]
    pieces = [piece for piece in pieces if len(piece) >= 2]
    if not pieces:
        raise InputError(f"{dataset.name} gives no sequence of two tokens: there is nothing to predict in it.")
    none = np.full(len(pieces), _UNKNOWN, np.int32)
    return Lessons(dataset.name, tuple(pieces), tuple(map(np.zeros_like, pieces)), none, (length,), pad_id)


def _real_part(row: Mapping[str, NDArray[Any]], name: str, number: int) -> tuple[Ids, Ids]:
    """Return the ids and segments of one sample without the padding that its mask shows."""
    ids = row["token_ids"].astype(np.int32)
    real = row.get("padding_mask")
    count = len(ids) if real is None else int(np.count_nonzero(real))
    if count == 0 or (real is not None and not real[:count].all()):
        raise InputError(f"{name}: the padding of sample {number} is not at its end, or it has no token.")
    segments = row.get("segment_ids", np.zeros_like(ids)).astype(np.int32)
    return ids[:count], segments[:count]


def _features(ports: Sequence[Port]) -> str:
    return next((port.name for port in ports if port.role == "features"), "no token ids")
