"""The checks that stand between a broken artifact and the disk, each shown to catch what it is there for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from edgelm_converters import recipes
from edgelm_converters.parity import accuracy_of, compare, deviation, enforce, expect, judged_by_task
from edgelm_converters.reference import Reference
from edgelm_converters.samples import Sample, SampleSet
from edgelm_runtimes.program import Arrays, ProgramFacts
from numpy.typing import NDArray

from edgelm.bundle import Port, Signature
from edgelm.errors import ConversionError, InputError, ParityError

_IDS = Port("token_ids", "int32", (None, None), "token_ids")
_SIGNATURES = tuple(
    Signature(
        f"serve_{n}",
        n,
        (Port("token_ids", "int32", (1, n), "token_ids"),),
        (Port("output", "float32", (1, 4), "logits"),),
    )
    for n in (4, 8)
)


def _logits(ids: NDArray[Any]) -> NDArray[Any]:
    """A model that names the first id, 10 against 9 for the others; padding is invisible to it. Shape (batch, 4)."""
    return 9 + np.eye(4, dtype=np.float32)[ids[:, 0] - 1]


def _every(nth: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return an artifact's fault: every nth answer names the next class. Its numbers are off by 1 of 10."""
    calls = itertools.count(1)
    return lambda y: np.roll(y, 1, axis=1) if next(calls) % nth == 0 else y


class _Program:
    """An artifact that answers with what `change` makes of the right answer."""

    facts = ProgramFacts("fake", "1", "cpu", 1, "none")

    def __init__(self, change: Callable[[NDArray[Any]], NDArray[Any]] = lambda y: y) -> None:
        self.change = change
        self.lengths: list[int] = []

    def run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        ids = inputs["token_ids"]
        assert ids.shape == signature.inputs[0].shape
        assert ids.dtype == np.int32
        self.lengths.append(ids.shape[1])
        return {"output": self.change(_logits(ids))}

    def close(self) -> None: ...


def _reference(call: Callable[[Any], Any] = _logits) -> Reference:
    return Reference((_IDS,), "single", call)


def _samples(kind: Any = "real", count: int = 40) -> SampleSet:
    generator = np.random.default_rng(1)
    samples = []
    for index in range(count):
        ids = generator.integers(1, 5, (1, 1 + index % 8)).astype(np.int32)
        samples.append(Sample(None, {"token_ids": ids}, int(_logits(ids)[0].argmax())))
    return SampleSet("test.csv", kind, tuple(samples))


def _compare(program: _Program, recipe: str = "fp32", samples: SampleSet | None = None) -> Any:
    samples = samples or _samples()
    expected = expect(_reference(), samples, lengths=(6, 8), pad_id=0, output=None)
    found = compare(program, _SIGNATURES, samples, expected, recipe=recipes.find(recipe), pad_id=0)
    enforce(*found, recipes.find(recipe), "litert")
    return found


def test_a_right_artifact_passes_in_the_smallest_bucket_that_fits() -> None:
    program = _Program()
    parity, accuracy = _compare(program)
    assert parity.max_abs_error == 0
    assert parity.agreement == 1
    assert accuracy.keras == accuracy.artifact == 1
    assert program.lengths == [4 if 1 + index % 8 <= 4 else 8 for index in range(40)]


def test_an_error_over_the_bound_is_refused_and_one_below_passes() -> None:
    # The bound of fp32 is 1e-4 of the largest output, 10.
    _compare(_Program(lambda y: y + np.float32(0.0005)))
    with pytest.raises(
        ParityError, match=r"off by up to 0\.002 on outputs of up to 10; .* Nothing was written"
    ) as caught:
        _compare(_Program(lambda y: y + np.float32(0.002)))
    assert "\n" not in str(caught.value)


def test_where_labels_say_that_the_task_holds_the_largest_error_is_kept_and_not_refused() -> None:
    samples = _samples(count=400)
    expected = expect(_reference(), samples, lengths=(6, 8), pad_id=0, output=None)
    recipe = recipes.find("fp32")
    parity, accuracy = compare(
        _Program(lambda y: y + np.float32(0.002)), _SIGNATURES, samples, expected, recipe=recipe, pad_id=0
    )
    enforce(parity, accuracy, recipe, "litert", task_holds=True)
    kept = judged_by_task(parity)
    # A device is held against what the artifact does here, and a tenth.
    assert parity.bound < parity.max_abs_error < kept.bound == pytest.approx(1.1 * parity.max_abs_error)
    assert "the task's metric holds" in kept.reason
    assert judged_by_task(dataclasses.replace(parity, bound=1.0)).bound == 1.0


def test_nan_is_refused_though_no_comparison_with_it_is_true() -> None:
    with pytest.raises(ConversionError, match="NaN or infinity where Keras does not"):
        _compare(_Program(lambda y: y * np.float32("nan")))


def test_nan_of_keras_itself_is_told_apart() -> None:
    with pytest.raises(ConversionError, match="Keras model itself"):
        expect(_reference(lambda ids: _logits(ids) * np.nan), _samples(), lengths=(6, 8), pad_id=0, output=None)


def test_a_collapse_of_labels_is_refused_though_the_numbers_stay_in_their_bound() -> None:
    with pytest.raises(ParityError, match=r"gives Keras's top label to 90\.0% of 40 inputs; the bound is 95\.0%"):
        _compare(_Program(_every(10)), "int8")


def test_lost_accuracy_is_refused_where_it_is_more_than_noise() -> None:
    # One answer in 40 is 2.5 points, where int8 may cost one. In 40 samples that is one answer: two standard errors are
    # 2 * sqrt(0.025 / 40) = 5 points. In 4,000 they are half a point.
    _, accuracy = _compare(_Program(_every(40)), "int8")
    assert (accuracy.keras, accuracy.artifact) == (1.0, 0.975)
    with pytest.raises(
        ParityError, match=r"is right on 97\.5% of test\.csv, Keras on 100\.0%; the recipe may cost 1\.0%"
    ):
        _compare(_Program(_every(40)), "int8", _samples(count=4000))


def test_labels_of_random_ids_are_not_enforced() -> None:
    parity, _ = _compare(_Program(), samples=_samples("random"))
    assert parity.agreement_bound is None


def test_a_model_that_sees_its_padding_shows_in_the_comparison() -> None:
    def averaged(ids: NDArray[Any]) -> NDArray[Any]:
        return _logits(ids) / ids.shape[1]

    samples = _samples()
    expected = expect(_reference(averaged), samples, lengths=(6, 8), pad_id=0, output=None)
    program = _Program(lambda y: y / program.lengths[-1])
    found = compare(program, _SIGNATURES, samples, expected, recipe=recipes.find("fp32"), pad_id=0)
    with pytest.raises(ParityError, match="off by up to"):
        enforce(*found, recipes.find("fp32"), "litert")


def test_keras_own_accuracy_is_that_of_its_answers() -> None:
    samples = _samples()
    expected = expect(_reference(), samples, lengths=(6, 8), pad_id=0, output=None)
    assert accuracy_of(expected, samples, "logits") == 1
    wrong = dataclasses.replace(
        samples, samples=tuple(dataclasses.replace(s, label=(s.label or 0) + 1) for s in samples.samples)
    )
    assert accuracy_of(expected, wrong, "logits") == 0
    assert accuracy_of(expected, samples, "embedding") is None


def test_the_deviation_is_the_root_mean_square_as_a_share_of_the_range() -> None:
    samples = _samples()
    expected = expect(_reference(), samples, lengths=(6, 8), pad_id=0, output=None)
    program = _Program(lambda y: y + np.float32(0.5))
    # Every element is off by the same 0.5, of outputs of up to 10.
    assert deviation(program, _SIGNATURES, samples, expected, pad_id=0) == pytest.approx(0.05)


def test_a_sample_longer_than_the_model_is_told() -> None:
    samples = SampleSet("x", "real", (Sample(None, {"token_ids": np.ones((1, 9), np.int32)}),))
    with pytest.raises(InputError, match="has 9 tokens, and the model takes at most 8"):
        expect(_reference(), samples, lengths=(8,), pad_id=0, output=None)
