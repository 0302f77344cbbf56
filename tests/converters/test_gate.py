"""The gate and its ladder, on artifacts whose loss is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from edgelm_converters import recipes
from edgelm_converters.gate import Gate, Trial, climb, lost, make_gate, rank
from edgelm_converters.parts import parts_of, widen
from edgelm_converters.spec import TransformerSpec, parameters
from spec_factory import random_decoder, random_seq2seq, random_spec

from edgelm.bundle import GateRecord
from edgelm.errors import ParityError, RecipeError

_INT8, _INT4 = recipes.find("int8"), recipes.find("int4")


def _encoder() -> TransformerSpec:
    return random_spec(layers=2, width=64, heads=4, feed_forward=128, vocabulary=200, positions=64)


def _bits(spec: TransformerSpec) -> dict[str, int]:
    """Return the width of each part, as an emitter sees it: that of any piece which holds one of its arrays."""
    found: dict[int, int] = {}

    def walk(value: object) -> None:
        for name in ("kernel", "token", "table"):
            array = getattr(value, name, None)
            if isinstance(array, np.ndarray):
                found[id(array)] = max(found.get(id(array), 0), getattr(value, "least_bits"))  # noqa: B009
        for child in vars(value).values() if hasattr(value, "__dataclass_fields__") else ():
            for item in child if isinstance(child, tuple) else (child,):
                if hasattr(item, "__dataclass_fields__"):
                    walk(item)

    walk(spec)
    return {part.name: max(found.get(array, 0) for array in part.arrays) for part in parts_of(spec)}


class TestParts:
    def test_every_matrix_that_integers_are_worth_for_is_in_one_part(self) -> None:
        pair = random_seq2seq(layers=1, encoder_layers=1, width=64, vocabulary=160, source_vocabulary=96)
        for spec in (_encoder(), random_decoder(layers=2, width=64, vocabulary=160), pair):
            held = [array for part in parts_of(spec) for array in part.arrays]
            assert len(held) == len(set(held))
            wanted = {id(array) for _, array in parameters(spec) if array.ndim == 2 and array.size >= 4096}
            assert wanted <= set(held)

    def test_a_tied_head_belongs_to_the_embeddings_and_is_widened_with_them(self) -> None:
        spec = random_decoder(layers=1, width=64, vocabulary=160, tied=True)
        assert "head" not in {part.name for part in parts_of(spec)}
        widened = widen(spec, {"embeddings": 16})
        assert widened.head.tokens is not None
        assert (widened.embeddings.least_bits, widened.head.tokens.least_bits) == (16, 16)
        assert widened.head.tokens.table is widened.embeddings.token is spec.embeddings.token

    def test_widening_touches_what_is_named_and_no_array(self) -> None:
        spec = _encoder()
        names = [part.name for part in parts_of(spec)]
        widened = widen(spec, {"encoder.1.feed_forward.down": 16, "encoder.0.attention.in": 8})
        bits = _bits(widened)
        assert bits.pop("encoder.1.feed_forward.down") == 16
        assert bits.pop("encoder.0.attention.in") == 8
        before = _bits(spec)
        assert bits == {name: before[name] for name in names if name in bits}
        pairs = zip(parameters(widened), parameters(spec), strict=True)
        assert all(mine is theirs for (_, mine), (_, theirs) in pairs)
        assert widened.encoder.layers[1].feed_forward.down.least_bits == 16

    def test_what_attends_to_a_source_is_widened_by_itself(self) -> None:
        spec = random_seq2seq(layers=1, encoder_layers=1, width=64, vocabulary=160, source_vocabulary=96)
        widened = widen(spec, {"decoder.0.cross_attention.source": 16, "source": 16})
        bits = _bits(widened)
        assert {name for name, count in bits.items() if count == 16} == {"decoder.0.cross_attention.source", "source"}
        assert widened.source is not None
        assert widened.source.embeddings is not None
        assert widened.source.embeddings.least_bits == 16

    def test_an_unknown_part_is_a_mistake(self) -> None:
        with pytest.raises(KeyError):
            widen(_encoder(), {"encoder.7.attention.in": 16})


def _loses(costs: Mapping[str, float], tried: list[dict[str, int]]) -> Callable[[TransformerSpec | None], Trial]:
    """Return an artifact's maker: each part that has too few bits costs accuracy."""

    def attempt(spec: TransformerSpec | None) -> Trial:
        assert spec is not None
        bits = _bits(spec)
        tried.append(bits)
        return Trial(0.9 - sum(cost for name, cost in costs.items() if bits[name] < 16), 1000 + sum(bits.values()))

    return attempt


def _climb(
    costs: Mapping[str, float], gate: Gate, tried: list[dict[str, int]], recipe: recipes.Recipe = _INT8
) -> GateRecord:
    order = dict(sorted(costs.items(), key=lambda item: -item[1]))
    return climb(
        _encoder(), recipe, gate,
        keras=0.9, data="test.csv", samples=100, attempt=_loses(costs, tried), ranking=lambda: order,
    )  # fmt: skip


class TestClimb:
    def test_what_passes_at_once_is_neither_ranked_nor_kept(self) -> None:
        def ranking() -> dict[str, float]:
            raise AssertionError

        record = climb(
            _encoder(), _INT8, Gate("accuracy", 0.01),
            keras=0.9, data="test.csv", samples=100, attempt=lambda spec: Trial(0.893, 7), ranking=ranking,
        )  # fmt: skip
        assert (record.value, record.ranking, len(record.steps), record.steps[0].kept) == (0.893, {}, 1, ())

    def test_the_worst_parts_are_kept_first_and_no_more_than_it_takes(self) -> None:
        costs = {"encoder.1.feed_forward.down": 0.2, "encoder.0.attention.out": 0.1, "encoder.0.feed_forward.up": 0.004}
        tried: list[dict[str, int]] = []
        record = _climb(costs, Gate("accuracy", 0.01), tried)
        assert record.steps[-1].kept == ("encoder.1.feed_forward.down (16 bits)", "encoder.0.attention.out (16 bits)")
        assert [step.value for step in record.steps] == pytest.approx([0.596, 0.796, 0.896])
        assert record.value == pytest.approx(0.896)
        # What was written last is what passed.
        assert tried[-1]["encoder.0.attention.out"] == 16
        assert tried[-1]["encoder.0.feed_forward.up"] < 16

    def test_four_bits_become_eight_before_they_become_sixteen(self) -> None:
        tried: list[dict[str, int]] = []
        record = _climb(
            {"encoder.0.attention.out": 0.2, "encoder.1.attention.out": 0.1}, Gate("accuracy", 0.01), tried, _INT4
        )
        widths = [entry["encoder.0.attention.out"] for entry in tried]
        assert widths == [4, 8, 8, 16, 16]
        assert record.steps[2].kept == ("encoder.0.attention.out (8 bits)", "encoder.1.attention.out (8 bits)")

    def test_where_nothing_passes_the_closest_is_told(self) -> None:
        costs = {"encoder.0.attention.out": 0.1}

        def attempt(spec: TransformerSpec | None) -> Trial:
            return Trial(_loses(costs, [])(spec).value - 0.05, 7)

        with pytest.raises(
            ParityError, match=r"the closest of 2 tried has 0\.85, Keras 0\.9, with parts in more bits: 1"
        ) as caught:
            climb(
                _encoder(), _INT8, Gate("accuracy", 0.01),
                keras=0.9, data="test.csv", samples=100, attempt=attempt, ranking=lambda: costs,
            )  # fmt: skip
        assert "\n" not in str(caught.value)

    def test_a_traced_model_has_no_ladder(self) -> None:
        with pytest.raises(ParityError, match="closest of 1 tried"):
            climb(
                None, _INT8, Gate("accuracy", 0.01),
                keras=0.9, data="test.csv", samples=100, attempt=lambda spec: Trial(0.5, 7), ranking=dict,
            )  # fmt: skip

    def test_a_ranking_that_was_asked_for_is_there_even_so(self) -> None:
        tried: list[dict[str, int]] = []
        costs = {"encoder.0.attention.out": 0.001}
        assert _climb(costs, Gate("accuracy", 0.01, sensitivity=True), tried).ranking == costs
        assert len(tried) == 1


def test_ranking_compresses_one_part_at_a_time() -> None:
    spec = _encoder()
    costs = {part.name: float(index % 5) for index, part in enumerate(parts_of(spec))}

    def error(tried: TransformerSpec) -> float:
        narrow = [name for name, bits in _bits(tried).items() if bits < 16]
        assert len(narrow) == 1
        return costs[narrow[0]]

    found = rank(spec, error)
    assert found == costs
    assert list(found.values()) == sorted(costs.values(), reverse=True)


@pytest.mark.parametrize(
    ("metric", "keras", "value", "loss"),
    [("accuracy", 0.9, 0.88, 0.02), ("perplexity", 10, 10.4, 0.04), ("parity", 0, 0.03, 0.03), ("bleu", 31, 30.2, 0.8)],
)
def test_losses_are_in_the_unit_of_the_option(metric: str, keras: float, value: float, loss: float) -> None:
    gate = make_gate(metric, 0.1)
    assert gate is not None
    assert lost(gate.metric, keras, value) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("metric", "drop", "message"),
    [
        ("accuracy", None, "needs both"),
        (None, 0.1, "needs both"),
        ("acuracy", 0.1, "accuracy"),
        ("accuracy", -0.1, "is no drop"),
        ("accuracy", float("nan"), "is no drop"),
    ],
)
def test_half_a_gate_is_refused(metric: str | None, drop: float | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_gate(metric, drop)
