"""Runs the steps of a chain on a model: what comes out is a Keras model again, which the artifacts are held against."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import CompressionStep
from edgelm.errors import RecipeError
from edgelm_converters.chain import Distil, Prune, Step, Trim
from edgelm_converters.data import read_dataset
from edgelm_converters.families import Recognition
from edgelm_converters.own_text import write_text
from edgelm_converters.reference import Reference, make_reference
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec, parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgelm_converters.distill import Distillation

__all__ = ["Compressed", "compress"]

Progress = Callable[[str, int, int], None]
_WRITTEN = (48, 128)  # sequences and tokens of each, where a language model writes its own text

Encode = Callable[["Tokenizer | None"], Sequence[NDArray[np.int32]] | None]


@dataclass(frozen=True)
class Compressed:
    """A model after its steps.

    Attributes:
        source: The Keras model that it is now.
        reference: The same as a function.
        spec: The same as a spec.
        tokenizer: That fits it; None where there is none.
        ids: New ids by old ones; None where the vocabulary stayed.
        steps: What was done, for the manifest.
    """

    source: Source
    reference: Reference
    spec: TransformerSpec
    tokenizer: Tokenizer | None
    ids: Mapping[int, int] | None
    steps: tuple[CompressionStep, ...]


def compress(
    steps: Sequence[Step],
    source: Source,
    recognition: Recognition,
    tokenizer: Tokenizer | None,
    *,
    encode: Encode,
    pad_id: int,
    labels: Sequence[str] | None = None,
    sequence_length: int | None = None,
    keep: Sequence[int] = (),
    chat_template: str | None = None,
    progress: Progress = lambda step, done, total: None,
) -> Compressed:
    """Run steps one after the other.

    Args:
        steps: What to do, at least one.
        source: The model.
        recognition: Its spec.
        tokenizer: None where there is none.
        encode: Returns the calibration data as ids, for a tokenizer; None where there are none.
        pad_id: The id that fills up.
        labels: Names of the classes, where there are some.
        sequence_length: The most tokens of a sample.
        keep: Ids that stay in the vocabulary whatever the corpus says.
        chat_template: Whose texts the vocabulary has to keep.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        RecipeError: The model was not recognised, or a step cannot be done on it; the message says why.
    """
    from edgelm_converters.compress.pruning import prune
    from edgelm_converters.compress.vocabulary import trim_vocabulary
    from edgelm_converters.distill import distil_spec
    from edgelm_converters.keras_model import build_keras_model

    spec = recognition.spec
    if spec is None:
        raise RecipeError(
            f"Only a recognised model can be made smaller, and this one was traced: {recognition.reason}."
        )
    teacher, ids, records = spec, None, []
    for step in steps:
        if isinstance(step, Trim):
            if tokenizer is None:
                raise RecipeError("Trimming the vocabulary needs the tokenizer: give it with --tokenizer.")
            texts = read_dataset(step.corpus).texts
            if texts is None:
                raise RecipeError(f"{step.corpus} holds arrays: a corpus to trim the vocabulary to holds texts.")
            progress("Trimming the vocabulary", 0, 1)
            trim = functools.partial(
                trim_vocabulary,
                tokenizer=tokenizer,
                texts=texts,
                keep=keep,
                chat_template=chat_template,
                limit=step.limit,
            )
            trimmed = trim(spec)
            teacher = trimmed.spec if teacher is spec else trim(teacher).spec  # a student has its teacher's vocabulary
            spec, tokenizer, ids = trimmed.spec, trimmed.tokenizer, trimmed.ids
            records.append(trimmed.step)
            progress("Trimming the vocabulary", 1, 1)
        elif isinstance(step, Prune):
            samples = encode(tokenizer)
            if samples is None and spec.generates:
                samples = write_text(spec, sequences=_WRITTEN[0], length=_WRITTEN[1])
            spec, record = prune(spec, step.pruning, samples, progress, pad_id=pad_id)
            records.append(record)
        else:
            data = read_dataset(step.data)
            before = sum(array.size for _, array in parameters(teacher))
            spec, done = distil_spec(
                teacher, spec, data, tokenizer,
                labels=labels, sequence_length=sequence_length, training=step.training, progress=progress,
            )  # fmt: skip
            records.append(_distilled(step, done, before))
    model = build_keras_model(spec)
    smaller = dataclasses.replace(source, model=model)
    return Compressed(smaller, make_reference(smaller), spec, tokenizer, ids, tuple(records))


def _distilled(step: Distil, done: Distillation, before: int) -> CompressionStep:
    settings: dict[str, int | float | str | bool | None] = {
        "epochs": step.training.epochs, "batch size": step.training.batch_size, "learning rate": step.training.learning_rate
    }  # fmt: skip
    notes = (f"Taught with {done.samples:,} samples of {done.data}, {done.steps:,} steps.", *done.notes)
    return CompressionStep("distil", settings, before, done.student_parameters, notes)
