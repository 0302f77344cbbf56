from __future__ import annotations

import contextlib
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InputError
from edgelm.report.expression import OPERATORS, Comparison, Join, Node, Not, parse


def _told(node: Node) -> str:
    """Write a tree with every parenthesis."""
    if isinstance(node, Comparison):
        return f"{node.name} {node.sign} {node.amount:g}"
    if isinstance(node, Not):
        return f"(not {_told(node.part)})"
    return f"({_told(node.left)} {node.word} {_told(node.right)})"


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("p90 < 20ms", "p90 < 0.02"),
        ("p90<20 ms", "p90 < 0.02"),
        ("20ms > p90", "p90 < 0.02"),
        ("20ms >= p90", "p90 <= 0.02"),
        ("20ms < p90", "p90 > 0.02"),
        ("20ms <= p90", "p90 >= 0.02"),
        ("20ms == p90", "p90 == 0.02"),
        ("p50 <= 250us", "p50 <= 0.00025"),
        ("p50 <= 250µs", "p50 <= 0.00025"),
        ("p50 != 100ns", "p50 != 1e-07"),
        ("load < .5s", "load < 0.5"),
        ("accuracy > 85%", "accuracy > 0.85"),
        ("accuracy >= 0.85", "accuracy >= 0.85"),
        ("size < 6 MiB", "size < 6.29146e+06"),
        ("size < 6MB", "size < 6e+06"),
        ("peak_memory < 1.5e2MB", "peak_memory < 1.5e+08"),
        ("energy < 12mJ", "energy < 0.012"),
        ("energy < 2J", "energy < 2"),
        ("throughput > 200/s", "throughput > 200"),
        ("decode_tokens_per_s > 20", "decode_tokens_per_s > 20"),
        ("p50 < 1s and p90 < 2s or p99 < 3s", "((p50 < 1 and p90 < 2) or p99 < 3)"),
        ("p50 < 1s or p90 < 2s and p99 < 3s", "(p50 < 1 or (p90 < 2 and p99 < 3))"),
        ("p50 < 1s and p90 < 2s and p99 < 3s", "((p50 < 1 and p90 < 2) and p99 < 3)"),
        ("(p50 < 1s or p90 < 2s) and p99 < 3s", "((p50 < 1 or p90 < 2) and p99 < 3)"),
        ("not p50 < 1s and p90 < 2s", "((not p50 < 1) and p90 < 2)"),
        ("not (p50 < 1s and p90 < 2s)", "(not (p50 < 1 and p90 < 2))"),
        ("NOT p50 < 1s AND not not p90 < 2s", "((not p50 < 1) and (not (not p90 < 2)))"),
    ],
)
def test_trees(text: str, tree: str) -> None:
    assert _told(parse(text).root) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text ends"),
        ("p90", "one of < <= > >= == != belongs there"),
        ("p90 <", "the text ends"),
        ("p90 < 20", "a bare number does not say of what. Known units: ns, us, µs, ms, s."),
        ("p90 < 20MB", "'MB' does not measure it"),
        ("accuracy > 85ms", "'ms' does not measure it"),
        ("p90 < 20 furlongs", "a bare number does not say of what"),
        ("p90 < 20msx", "is nothing known"),
        ("p95 < 20ms", "No figure is called 'p95'. Did you mean 'p99'?"),
        ("P90 < 20ms", "Known: accuracy, accuracy_drop"),
        ("p90 < p50", "a figure is compared with an amount"),
        ("1ms < 2ms", "a figure is compared with an amount"),
        ("1ms < p50 < 2ms", "Join comparisons with 'and' or 'or'"),
        ("p50 < 1ms p90 < 2ms", "at character 11: 'p90' is not expected there"),
        ("p50 < 1ms and", "the text ends"),
        ("and p50 < 1ms", "there is 'and'"),
        ("(p50 < 1ms", "a ')' is missing"),
        ("p50 < 1ms)", "')' is not expected there"),
        ("p50 = 1ms", "'= 1ms' is nothing known"),
        ("p50 < -1ms", "'-1ms' is nothing known"),
        ("(" * 500 + "p50 < 1ms", "nested more than 100 deep"),
        ("not " * 5000 + "p50 < 1ms", "nested more than 100 deep"),
    ],
)
def test_what_is_no_expression(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


comparisons = st.builds(
    lambda name, sign, amount: f"{name} {sign} {amount}ms",
    st.sampled_from(["p50", "p90", "p99"]),
    st.sampled_from(sorted(OPERATORS)),
    st.integers(0, 9),
)
expressions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        inner.map("not {}".format),
        inner.map("({})".format),
        st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner),
    ),
    max_leaves=12,
)


@given(expressions, st.dictionaries(st.sampled_from(["p50", "p90", "p99"]), st.integers(0, 9), min_size=3))
def test_the_precedence_is_that_of_python(text: str, values: dict[str, int]) -> None:
    # Python binds comparisons, not, and, or in the same order, and its `not` of a comparison needs no parenthesis either.
    expected = eval(text.replace("ms", ""), {"__builtins__": {}}, dict(values))  # noqa: S307 - made above

    def holds(node: Node) -> bool:
        if isinstance(node, Comparison):
            return OPERATORS[node.sign](round(values[node.name] / 1e3, 6), round(node.amount, 6))
        if isinstance(node, Not):
            return not holds(node.part)
        assert isinstance(node, Join)
        return (operator.and_ if node.word == "and" else operator.or_)(holds(node.left), holds(node.right))

    assert holds(parse(text).root) is bool(expected)


@given(st.text(alphabet="p90 <>=()andortmsMB%.e-+\"'\x00é", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse(text).text == text.strip()
