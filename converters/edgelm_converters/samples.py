"""Inputs to check an artifact with: the user's own where there are any, valid random ones otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port
from edgelm.errors import InputError
from edgelm_converters.data import Dataset
from edgelm_converters.reference import Reference

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Sample", "SampleSet", "make_samples", "pad_batch"]

_RANDOM_SAMPLES = 24
_SEED = 20  # fixed: the same model gives the same check twice


@dataclass(frozen=True)
class Sample:
    """One input, batch 1, without padding.

    Attributes:
        text: What the ids came from; None where the data are arrays.
        inputs: Every input of the model by name.
        label: Index of its class; None where it is not known.
    """

    text: str | None
    inputs: dict[str, NDArray[Any]]
    label: int | None = None

    def length(self, token_input: str) -> int:
        """Return the number of tokens."""
        return int(self.inputs[token_input].shape[1])


@dataclass(frozen=True)
class SampleSet:
    """Samples, and where they are from."""

    source: str
    kind: Literal["real", "random"]
    samples: tuple[Sample, ...]

    def spread(self, count: int) -> SampleSet:
        """Return at most `count` of the samples, evenly spread over all."""
        rows = np.unique(np.linspace(0, len(self.samples) - 1, min(count, len(self.samples))).astype(int))
        return dataclasses.replace(self, samples=tuple(self.samples[row] for row in rows))


def make_samples(
    reference: Reference,
    dataset: Dataset | None,
    *,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
    vocabulary_size: int | None,
    max_length: int | None,
) -> SampleSet:
    """Return samples of the data, or random ones where there are no data.

    Args:
        reference: The model that they are for.
        dataset: The user's data, or None.
        tokenizer: Turns texts into ids; needed where the data are texts.
        labels: Names of the classes, to find the index of a sample's label.
        vocabulary_size: Random ids stay below this.
        max_length: Random texts get no longer than this; arrays must not be.

    Raises:
        InputError: The data do not fit the model, or hold a label that it does not have.
    """
    if dataset is None:
        return SampleSet("random ids", "random", _random(reference, vocabulary_size or 2, max_length))
    classes = _class_indices(dataset, labels)
    if dataset.texts is not None:
        if tokenizer is None or reference.token_input is None:
            raise InputError(
                f"{dataset.name} holds texts, and there is no tokenizer to turn them into ids: give one with --tokenizer."
            )
        encodings = tokenizer.encode_batch(list(dataset.texts))
        inputs: Iterable[dict[str, NDArray[Any]]] = (
            token_inputs(reference.inputs, encoding.ids, encoding.type_ids) for encoding in encodings
        )
    else:
        inputs = _from_arrays(reference, dataset)
    texts = dataset.texts or (None,) * len(dataset)
    samples = tuple(Sample(*parts) for parts in zip(texts, inputs, classes, strict=True))
    tokens = reference.token_input
    for number, sample in enumerate(samples, 1):
        if tokens is not None and sample.length(tokens.name) == 0:
            raise InputError(f"{dataset.name}: sample {number} gives no tokens at all. Remove it.")
    return SampleSet(dataset.name, "real", samples)


def token_inputs(ports: Sequence[Port], ids: Sequence[int], type_ids: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return the arrays, batch 1, that one encoded text gives to a model's inputs."""
    values = {
        "token_ids": np.asarray([ids]),
        "padding_mask": np.ones((1, len(ids))),
        "segment_ids": np.asarray([type_ids]),
    }
    return {port.name: values[port.role].astype(port.dtype) for port in ports if port.role in values}


def _class_indices(dataset: Dataset, labels: Sequence[str] | None) -> list[int | None]:
    if dataset.labels is None:
        return [None] * len(dataset)
    if labels is None:
        if not all(label.isdigit() for label in dataset.labels):
            raise InputError(
                f"{dataset.name} holds label names, and the model has none: give them in order with --labels."
            )
        return [int(label) for label in dataset.labels]
    index = {name: position for position, name in enumerate(labels)}
    unknown = sorted({name for name in dataset.labels if name not in index and not name.isdigit()})
    if unknown:
        raise InputError(
            f"{dataset.name} holds the label '{unknown[0]}', which is not among the {len(index)} labels given."
        )
    return [index[name] if name in index else int(name) for name in dataset.labels]


def _from_arrays(reference: Reference, dataset: Dataset) -> Iterable[dict[str, NDArray[Any]]]:
    arrays = dataset.arrays or {}
    names = {port.name for port in reference.inputs}
    if set(arrays) != names:
        raise InputError(f"{dataset.name} has the arrays {sorted(arrays)}; the model's inputs are {sorted(names)}.")
    for port in reference.inputs:
        if arrays[port.name].ndim != len(port.shape):
            shape = arrays[port.name].shape
            raise InputError(f"{dataset.name}: '{port.name}' has the shape {shape}, and the model takes {port.shape}.")
    for row in range(len(dataset)):
        yield {port.name: arrays[port.name][row : row + 1].astype(port.dtype) for port in reference.inputs}


def _random(reference: Reference, vocabulary_size: int, max_length: int | None) -> tuple[Sample, ...]:
    """Draw valid ids of many lengths; id 0 stays out, since many models take it for padding."""
    generator = np.random.default_rng(_SEED)
    tokens = reference.token_input
    fixed = tokens.shape[1] if tokens else None
    longest = fixed or max_length or 64
    samples = []
    for index in range(_RANDOM_SAMPLES):
        length = fixed or max(1, round(longest * (index + 1) / _RANDOM_SAMPLES))
        values: dict[str, NDArray[Any]] = {}
        for port in reference.inputs:
            shape = (1, *(length if extent is None else extent for extent in port.shape[1:]))
            if port.role == "token_ids":
                values[port.name] = generator.integers(min(1, vocabulary_size - 1), vocabulary_size, shape)
            elif port.role == "padding_mask":
                values[port.name] = np.ones(shape)
            elif port.role == "segment_ids" or not port.dtype.startswith(("float", "bfloat")):
                values[port.name] = np.zeros(shape)
            else:
                values[port.name] = generator.standard_normal(shape)
            values[port.name] = values[port.name].astype(port.dtype)
        samples.append(Sample(None, values))
    return tuple(samples)


def pad_batch(samples: Sequence[Sample], ports: Sequence[Port], length: int, pad_id: int) -> dict[str, NDArray[Any]]:
    """Return samples as one batch of `length` tokens, padded at the end; features are only stacked."""
    batch: dict[str, NDArray[Any]] = {}
    for port in ports:
        rows = [sample.inputs[port.name] for sample in samples]
        if port.role in ("token_ids", "padding_mask", "segment_ids"):
            rows = [_pad(row, length, pad_id if port.role == "token_ids" else 0) for row in rows]
        batch[port.name] = np.concatenate(rows, axis=0)
    return batch


def _pad(row: NDArray[Any], length: int, value: int) -> NDArray[Any]:
    missing = length - row.shape[1]
    return np.pad(row, ((0, 0), (0, missing)), constant_values=value) if missing else row


def group_by_length(samples: Sequence[Sample], token_input: str, lengths: Sequence[int]) -> Mapping[int, list[int]]:
    """Return the indices of the samples under the smallest of `lengths` that each one fits in."""
    groups: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        need = sample.length(token_input)
        fitting = [length for length in lengths if length >= need]
        if not fitting:
            raise InputError(f"A sample has {need} tokens, and the model takes at most {max(lengths)}.")
        groups.setdefault(min(fitting), []).append(index)
    return groups
