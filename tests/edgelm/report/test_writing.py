from __future__ import annotations

from report_factory import LLAMA_BENCH, make_generation_run

from edgelm.report import Result
from edgelm.report.foreign import parse_llama_bench
from edgelm.report.rows import Group, group_runs
from edgelm.report.tables import writing_table
from edgelm.report.view import view
from edgelm.report.writing import WritingVerdict, by_depth, judge_writing


def _group(*runs: Result) -> Group:
    (group,) = group_runs(runs)
    return group


def _judge(*runs: Result) -> WritingVerdict:
    verdict = judge_writing(_group(*runs))
    assert verdict is not None
    return verdict


FAST = [make_generation_run(runtime="litert", depth=depth, tokens_per_s=40) for depth in (0, 512)]
SLOW = [make_generation_run(runtime="onnx", depth=depth, tokens_per_s=30, seed=1) for depth in (0, 2048)]


def test_they_are_compared_at_the_depth_that_most_have() -> None:
    verdict = _judge(*SLOW, *FAST)
    assert verdict.headline == "stories in litert (#1) writes fastest."
    assert verdict.choice is not None
    assert verdict.choice.depth == 0
    assert verdict.reasons[0].startswith("It writes 40.0 tokens a second with an empty cache")
    assert verdict.reasons[0].endswith("At a depth of 512 it writes 35.6.")  # 40 / (1 + 512 / 4096)
    assert verdict.reasons[1] == "Next: stories in onnx (#3) with 30.0."


def test_one_alone_is_not_compared() -> None:
    assert _judge(FAST[0]).choice is None
    assert "nothing to compare it with" in _judge(FAST[0]).headline
    assert _judge(*FAST).headline == "stories in litert writes 40.0 tokens a second with an empty cache."


def test_other_tools_take_no_part() -> None:
    verdict = _judge(make_generation_run(tokens_per_s=4), *parse_llama_bench(LLAMA_BENCH))
    assert verdict.headline.startswith("stories in litert is the only language model")
    assert judge_writing(_group(*parse_llama_bench(LLAMA_BENCH))) is None


def test_depths_of_one_model_are_one_line() -> None:
    lines = by_depth(_group(*SLOW, *FAST).rows)
    assert [(line.name.split(",")[0], [row.depth for row in line.rows]) for line in lines] == [
        ("stories in litert", [0, 512]),
        ("stories in onnx", [0, 2048]),
    ]


def test_the_table_has_a_mean_only_as_a_mean() -> None:
    table = writing_table(_group(make_generation_run(), *parse_llama_bench(LLAMA_BENCH)).rows)
    column = [each.name for each in table.columns].index("token_p50")
    (_, ours), (_, theirs) = table.lines
    assert ours[column].value is not None
    assert (theirs[column].value, theirs[column].sub) == (None, "mean 50.0 ms")


def test_runs_at_other_depths_are_not_on_the_front() -> None:
    (section,) = view(_group(*SLOW, *FAST)).sections
    assert section.front.judged == 2
    assert section.front.numbers == {1}
    assert [each.row.depth for each in section.comparisons] == [0]
