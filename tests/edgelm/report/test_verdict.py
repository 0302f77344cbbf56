from __future__ import annotations

import dataclasses

from run_factory import PI, SERVER, make_run, replaced

from edgelm.bench import Run
from edgelm.report.cautions import cautions_of, warnings_of
from edgelm.report.rows import group_runs
from edgelm.report.verdict import Verdict, judge


def _judge(*runs: Run) -> Verdict:
    (group,) = group_runs(runs)
    return judge(group)


def _name(verdict: Verdict) -> str | None:
    return verdict.choice.model if verdict.choice else None


LARGE = make_run(name="large", median_s=0.02, accuracy=0.915, size_bytes=20_000_000)
MEDIUM = make_run(name="medium", median_s=0.008, accuracy=0.912, size_bytes=6_000_000)
TINY = make_run(name="tiny", median_s=0.001, accuracy=0.86, size_bytes=900_000)


def test_the_fastest_within_a_point_of_the_best_accuracy() -> None:
    verdict = _judge(LARGE, MEDIUM, TINY)
    assert _name(verdict) == "medium"
    assert verdict.headline == "Ship medium in litert (#2)."
    assert "2 of 3 are within 1 percentage point of the best accuracy, 91.5 %." in verdict.reasons
    assert [best.row.model for best in verdict.bests if best.row] == ["tiny", "tiny", "large"]


def test_the_deadline_comes_first() -> None:
    runs = [make_run(name=n, median_s=m, accuracy=a, deadline_s=0.005) for n, m, a in
            (("large", 0.02, 0.915), ("tiny", 0.001, 0.86))]  # fmt: skip
    verdict = _judge(*runs)
    assert _name(verdict) == "tiny"
    assert "1 of 2 runs keep the deadline of 5.00 ms in at least 99% of the queries." in verdict.reasons


def test_no_run_keeps_the_deadline() -> None:
    verdict = _judge(*(make_run(name=name, median_s=0.02, deadline_s=0.005) for name in "ab"))
    assert verdict.choice is None
    assert verdict.headline == "None of these keeps the deadline."
    assert "0 % of the queries within 5.00 ms" in verdict.reasons[0]


def test_of_equally_fast_ones_the_smaller() -> None:
    big = make_run(name="big", median_s=0.00400, size_bytes=9_000_000)
    small = make_run(name="small", median_s=0.00408, size_bytes=3_000_000)
    verdict = _judge(big, small)
    assert _name(verdict) == "small"
    assert "level with the fastest (#1), and smaller" in verdict.reasons[-1]


def test_without_accuracy_it_says_so() -> None:
    verdict = _judge(*(make_run(name=n, median_s=m, accuracy=None) for n, m in (("a", 0.004), ("b", 0.001))))
    assert _name(verdict) == "b"
    assert "Accuracy was not measured" in verdict.reasons[0]
    assert verdict.bests[2].row is None
    assert verdict.bests[2].value == "not measured"


def test_a_run_without_accuracy_is_left_out_beside_one_with() -> None:
    verdict = _judge(MEDIUM, make_run(name="unknown", median_s=0.0001, accuracy=None))
    assert _name(verdict) == "medium"
    assert "1 without a known accuracy left out" in verdict.reasons[0]


def test_accuracies_on_other_data_are_not_compared() -> None:
    accuracy = MEDIUM.bundle.accuracy
    assert accuracy is not None
    other = replaced(TINY, "bundle", accuracy=dataclasses.replace(accuracy, data="other.csv"))
    verdict = _judge(MEDIUM, other)
    assert _name(verdict) == "tiny"
    assert "different data" in verdict.reasons[0]
    assert verdict.bests[2].value == "not comparable"


def test_one_run_is_not_compared() -> None:
    verdict = _judge(MEDIUM)
    assert verdict.choice is None
    assert verdict.headline == "medium in litert is the only run: there is nothing to compare it with yet."
    assert verdict.bests[0].note == ""


def test_few_queries_are_judged_by_the_p50() -> None:
    verdict = _judge(*(make_run(name=n, median_s=m, queries=5) for n, m in (("a", 0.004), ("b", 0.001))))
    assert _name(verdict) == "b"
    assert "half of the queries" in verdict.reasons[-1]


def test_another_machine_does_not_decide_for_the_device() -> None:
    runs = [dataclasses.replace(run, machine=SERVER) for run in (MEDIUM, TINY)]
    runs = [replaced(run, "profile", match=False, statement="Measured on AMD EPYC 9R14, not on it.") for run in runs]
    verdict = _judge(*runs)
    assert verdict.headline == "By this machine’s numbers, medium in litert (#2)."
    assert "Measure on Raspberry Pi 5 before deciding" in verdict.reasons[-1]


def test_emulation_is_never_timed() -> None:
    verdict = _judge(make_run(machine=dataclasses.replace(PI, emulated_on="x86_64"), match=False))
    assert verdict.choice is None
    assert verdict.headline == "Nothing here was timed on real hardware."
    assert verdict.bests[0].value == "not measured"


def test_machines_are_not_mixed() -> None:
    groups = group_runs([LARGE, dataclasses.replace(TINY, machine=SERVER), MEDIUM])
    assert [group.title for group in groups] == [PI.device_model, SERVER.cpu_model]
    assert [[row.model for row in group.rows] for group in groups] == [["medium", "large"], ["tiny"]]
    assert [row.number for group in groups for row in group.rows] == [1, 2, 3]


def test_warnings() -> None:
    run = make_run(warm_up_settled=False, truncated_inputs=3)
    run = replaced(run, "before", load_average_1min=3.5)
    assert run.after.throttling is not None
    run = replaced(run, "after", throttling=dataclasses.replace(run.after.throttling, now=("under_voltage",)))
    run = dataclasses.replace(run, stopped="Ctrl-C")
    assert warnings_of(run) == (
        "Stopped after 400 queries: Ctrl-C.",
        "The p50 had not settled after 80 warm-up queries.",
        "3 of 40 inputs were cut to the model's length.",
        "The machine was busy before: a load average of 3.50 on 4 usable cores.",
        "The clock was limited after the measurement: under voltage.",
    )
    assert warnings_of(make_run()) == ()


def test_a_warning_that_several_runs_share_comes_once() -> None:
    busy = [replaced(run, "before", load_average_1min=3.5) for run in (LARGE, TINY)]
    (group,) = group_runs([*busy, MEDIUM])
    message = "The machine was busy before: a load average of 3.50 on 4 usable cores."
    assert cautions_of(group.rows) == ((message, (1, 3)),)
