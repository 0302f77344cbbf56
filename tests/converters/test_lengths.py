from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgelm_converters.lengths import buckets, choose_lengths
from edgelm_converters.reference import Reference
from edgelm_converters.tokens import Tokens
from numpy.typing import NDArray
from spec_factory import random_spec

from edgelm.bundle import Port
from edgelm.errors import InputError

_TOKENS = Tokens(None, 0, None, 50, ())


def _reference(call: Any, length: int | None = None) -> Reference:
    return Reference((Port("token_ids", "int32", (None, length), "token_ids"),), "single", call)


def _masked_mean(ids: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(ids.sum(axis=1, keepdims=True) / np.maximum((ids != 0).sum(axis=1, keepdims=True), 1))


def _mean(ids: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(ids.mean(axis=1, keepdims=True))


@pytest.mark.parametrize(("maximum", "expected"), [(8, (8,)), (16, (16,)), (17, (16, 17)), (128, (16, 32, 64, 128))])
def test_buckets_double_up_to_the_maximum(maximum: int, expected: tuple[int, ...]) -> None:
    assert buckets(maximum) == expected


def test_a_traced_model_gets_buckets_where_its_padding_was_measured_to_be_invisible() -> None:
    lengths = choose_lengths(_reference(_masked_mean), None, _TOKENS, 64)
    assert (lengths.padding, lengths.buckets) == ("masked", (16, 32, 64))


def test_a_traced_model_that_sees_its_padding_gets_one_length_and_is_told() -> None:
    lengths = choose_lengths(_reference(_mean), None, _TOKENS, 64)
    assert (lengths.padding, lengths.buckets) == ("full", (64,))
    assert "Padding changes the model's answer" in lengths.notes[0]


def test_a_fixed_input_is_kept_and_another_length_refused() -> None:
    assert choose_lengths(_reference(_mean, 20), None, _TOKENS, None).buckets == (20,)
    with pytest.raises(InputError, match="more than the model's fixed input has: 20"):
        choose_lengths(_reference(_mean, 20), None, _TOKENS, 30)
    with pytest.raises(InputError, match="takes exactly 20 tokens"):
        choose_lengths(_reference(_mean, 20), None, _TOKENS, 10)


def test_the_default_length_is_told_and_the_tokenizers_is_used_where_it_has_one() -> None:
    lengths = choose_lengths(_reference(_masked_mean), None, _TOKENS, None)
    assert lengths.maximum == 128
    assert "Texts are cut after 128 tokens" in lengths.notes[0]
    cut = choose_lengths(_reference(_masked_mean), None, Tokens(None, 0, 40, 50, ()), None)
    assert (cut.maximum, cut.notes) == (40, ())


def test_a_model_without_tokens_has_no_lengths() -> None:
    features = Reference((Port("x", "float32", (None, 7), "features"),), "single", _mean)
    assert choose_lengths(features, None, _TOKENS, None).padding == "none"
    with pytest.raises(InputError, match="has no sequence of tokens"):
        choose_lengths(features, None, _TOKENS, 5)


@pytest.mark.parametrize(
    ("mask", "pooling", "pooling_masked", "padding"),
    [
        ("nonzero", "mean", True, "masked"),
        ("nonzero", "first", False, "masked"),
        ("input", "mean", False, "full"),
        ("none", "first", True, "full"),
    ],
)
def test_a_spec_gets_buckets_where_neither_attention_nor_pooling_sees_padding(
    mask: Any, pooling: Any, pooling_masked: bool, padding: str
) -> None:
    spec = random_spec(mask=mask, pooling=pooling, pooling_masked=pooling_masked)
    assert choose_lengths(_reference(_mean), spec, _TOKENS, 32).padding == padding
