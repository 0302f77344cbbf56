"""Is the artifact still the model? Its outputs against Keras's, in the runtime that the device will use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from edgelm_runtimes import feed
from edgelm_runtimes.program import Program
from numpy.typing import NDArray

from edgelm.bundle import Accuracy, Parity, Port, Signature
from edgelm.bundle.manifest import Role
from edgelm.errors import ConversionError, ParityError
from edgelm_converters.recipes import Recipe
from edgelm_converters.reference import Reference
from edgelm_converters.samples import Sample, SampleSet, group_by_length, pad_batch

__all__ = ["Expected", "Tick", "accuracy_of", "compare", "deviation", "enforce", "expect", "judged_by_task"]

Tick = Callable[[int, int], None]
Outputs = dict[str, NDArray[Any]]

_BATCH = 64
_ROOM = 1.1  # another device rounds in another order
_CHOICES = ("logits", "probabilities", "sigmoid")


@dataclass(frozen=True)
class Expected:
    """Keras's answers, one a sample, without batch axis and without the rows of padding."""

    outputs: tuple[Outputs, ...]

    @property
    def range(self) -> float:
        """The largest absolute value of all."""
        return max(float(np.abs(value).max()) for outputs in self.outputs for value in outputs.values())


def expect(
    reference: Reference,
    samples: SampleSet,
    *,
    lengths: Sequence[int],
    pad_id: int,
    output: str | None,
    tick: Tick = lambda done, total: None,
) -> Expected:
    """Return Keras's answer to every sample.

    Args:
        reference: The model.
        samples: Inputs without padding.
        lengths: The lengths that Keras may be called with. Ignored where there are no tokens.
        pad_id: The id that fills up.
        output: The one output that counts; None for all of them.
        tick: Called with samples done and in total.

    Raises:
        ConversionError: Keras itself answers with NaN or infinity.
    """
    tokens = reference.token_input
    total = len(samples.samples)
    answers: list[Outputs | None] = [None] * total
    done = 0
    for length, indices in _groups(samples.samples, tokens, lengths).items():
        for start in range(0, len(indices), _BATCH):
            chosen = indices[start : start + _BATCH]
            batch = pad_batch([samples.samples[index] for index in chosen], reference.inputs, length, pad_id)
            result = reference.run(batch)
            result = {
                name: value for name, value in result.items() if output is None or name == output or len(result) == 1
            }
            for row, index in enumerate(chosen):
                real = samples.samples[index].length(tokens.name) if tokens else None
                answers[index] = {name: _without_padding(value[row], length, real) for name, value in result.items()}
            done += len(chosen)
            tick(done, total)
    outputs = tuple(answer for answer in answers if answer is not None)
    if not all(np.isfinite(value).all() for answer in outputs for value in answer.values()):
        raise ConversionError("The Keras model itself answers with NaN or infinity on these inputs: check its weights.")
    return Expected(outputs)


def _groups(samples: Sequence[Sample], tokens: Port | None, lengths: Sequence[int]) -> Mapping[int, list[int]]:
    if tokens is None:
        return {0: list(range(len(samples)))}
    return group_by_length(samples, tokens.name, lengths)


def _without_padding(value: NDArray[Any], length: int, real: int | None) -> NDArray[Any]:
    """Cut the rows of padding off an output that has a row for each token."""
    return value[:real] if real is not None and value.ndim >= 2 and value.shape[0] == length else value


def compare(
    program: Program,
    signatures: Sequence[Signature],
    samples: SampleSet,
    expected: Expected,
    *,
    recipe: Recipe,
    pad_id: int,
    tick: Tick = lambda done, total: None,
) -> tuple[Parity, Accuracy | None]:
    """Hold an artifact against Keras; `enforce` holds what comes out against the recipe's bounds.

    Raises:
        ConversionError: It answers with NaN or infinity.
    """
    port = signatures[0].outputs[0]
    worst, same, right, keras_right, labelled = 0.0, 0, 0, 0, 0
    total = len(samples.samples)
    for index, (sample, answer) in enumerate(zip(samples.samples, expected.outputs, strict=True)):
        mine = _run(program, signatures, sample, pad_id)
        for ours, theirs in _pair(mine, answer):
            if not np.isfinite(ours).all():
                raise ConversionError(
                    f"{program.facts.runtime} answers with NaN or infinity where Keras does not: the file is not usable."
                )
            worst = max(worst, float(np.abs(ours - theirs).max()))
        if port.role in _CHOICES:
            keras_top, top = (_top(outputs, port.role) for outputs in (answer, mine))
            same += top == keras_top
            if sample.label is not None:
                labelled, right, keras_right = (
                    labelled + 1,
                    right + (top == sample.label),
                    keras_right + (keras_top == sample.label),
                )
        tick(index + 1, total)
    parity = Parity(
        samples=total,
        inputs=samples.kind,
        max_abs_error=worst,
        reference_range=expected.range,
        bound=recipe.bounds.relative * max(expected.range, 1e-6),
        agreement=same / total if port.role in _CHOICES else None,
        # Random ids say nothing about labels: the classes of a model lie close together on them.
        agreement_bound=recipe.bounds.agreement if port.role in _CHOICES and samples.kind == "real" else None,
        reason=recipe.bounds.reason,
    )
    accuracy = Accuracy(samples.source, labelled, keras_right / labelled, right / labelled) if labelled else None
    return parity, accuracy


def deviation(
    program: Program, signatures: Sequence[Signature], samples: SampleSet, expected: Expected, *, pad_id: int
) -> float:
    """Return how far an artifact's answers are off: root mean square, as a share of the largest of Keras's.

    Raises:
        ConversionError: It answers with NaN or infinity.
    """
    squares, count = 0.0, 0
    for sample, answer in zip(samples.samples, expected.outputs, strict=True):
        for ours, theirs in _pair(_run(program, signatures, sample, pad_id), answer):
            squares += float(np.square(ours.astype(np.float64) - theirs).sum())
            count += ours.size
    if not np.isfinite(squares):
        raise ConversionError(f"{program.facts.runtime} answers with NaN or infinity where Keras does not.")
    return float(np.sqrt(squares / max(count, 1)) / max(expected.range, 1e-6))


def accuracy_of(expected: Expected, samples: SampleSet, role: Role) -> float | None:
    """Return the share of the labelled samples that Keras itself is right on; None where none has a label."""
    if role not in _CHOICES:
        return None
    pairs = zip(samples.samples, expected.outputs, strict=True)
    right = [_top(answer, role) == sample.label for sample, answer in pairs if sample.label is not None]
    return sum(right) / len(right) if right else None


def judged_by_task(parity: Parity) -> Parity:
    """Return a parity whose bound is what was seen, where the user's own metric let more pass than the recipe's bound.

    A device that checks itself is held against the artifact as it is, and not against the recipe.
    """
    if parity.max_abs_error <= parity.bound:
        return parity
    reason = f"what was measured, and a tenth: past the recipe's {parity.bound:.3g}, but the task's metric holds"
    return replace(parity, bound=parity.max_abs_error * _ROOM, reason=reason)


def enforce(
    parity: Parity, accuracy: Accuracy | None, recipe: Recipe, runtime: str, *, task_holds: bool = False
) -> None:
    """Hold what was measured against the recipe's bounds.

    Args:
        parity: What was measured.
        accuracy: On labelled data; None where there are none.
        recipe: Whose bounds count.
        runtime: That it was measured in.
        task_holds: Whether enough labelled data are there to say how good the answers are: the largest error then says
            nothing that accuracy and equal labels do not say better, and is not refused.

    Raises:
        ParityError: The numbers leave the bound, or more accuracy is lost than the recipe allows.
    """
    safer = (
        ""
        if recipe.name == "fp32"
        else " Try --recipe fp16 or fp32, or say what counts with --metric and --max-drop: parts are then kept wider."
    )
    where = f"{runtime} ({recipe.name})"
    if not task_holds and not parity.max_abs_error <= parity.bound:
        raise ParityError(
            f"{where} is off by up to {parity.max_abs_error:.3g} on outputs of up to {parity.reference_range:.3g}; "
            f"the bound is {parity.bound:.3g} ({parity.reason}). Nothing was written.{safer}"
        )
    if (
        parity.agreement is not None
        and parity.agreement_bound is not None
        and parity.agreement < parity.agreement_bound
    ):
        raise ParityError(
            f"{where} gives Keras's top label to {parity.agreement:.1%} of {parity.samples} inputs; "
            f"the bound is {parity.agreement_bound:.1%}. Nothing was written.{safer}"
        )
    # A drop within the noise of few samples (two standard errors of the difference) is no drop.
    if accuracy is not None:
        noise = 2 * np.sqrt(max(1 - (parity.agreement or 1.0), 0.0) / accuracy.samples)
        drop = accuracy.keras - accuracy.artifact
        if drop > recipe.bounds.accuracy_drop + noise:
            raise ParityError(
                f"{where} is right on {accuracy.artifact:.1%} of {accuracy.data}, Keras on {accuracy.keras:.1%}; "
                f"the recipe may cost {recipe.bounds.accuracy_drop:.1%}. Nothing was written.{safer}"
            )


def _run(program: Program, signatures: Sequence[Signature], sample: Sample, pad_id: int) -> Outputs:
    """Run one sample in the smallest signature that fits, and cut the padding off."""
    tokens = feed.token_port(signatures[0])
    if tokens is None:
        outputs = program.run(signatures[0], sample.inputs)
        return {name: value[0] for name, value in outputs.items()}
    need = sample.length(tokens.name)
    signature = feed.smallest(signatures, need)
    length = signature.sequence_length or need
    inputs = pad_batch([sample], signature.inputs, length, pad_id)
    inputs = {port.name: inputs[port.name].astype(port.dtype) for port in signature.inputs}
    outputs = program.run(signature, inputs)
    return {name: _without_padding(value[0], length, need) for name, value in outputs.items()}


def _pair(mine: Outputs, reference: Outputs) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the artifact's outputs beside Keras's, by name, or one to one where there is one of each."""
    names = [(name, name) for name in mine] if set(mine) <= set(reference) else list(zip(mine, reference, strict=True))
    pairs = [(mine[ours], reference[theirs].astype(np.float32)) for ours, theirs in names]
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise ConversionError(f"The artifact's output has the shape {ours.shape}, Keras's {theirs.shape}.")
    return pairs


def _top(outputs: Outputs, role: str) -> int:
    """Return the index of the answer; for one sigmoid, whether it is above one half."""
    values = np.ravel(next(iter(outputs.values())))
    return int(values[0] > 0.5) if role == "sigmoid" and values.size == 1 else int(values.argmax())
