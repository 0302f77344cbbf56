from __future__ import annotations

import dataclasses
from itertools import product

import pytest
from report_factory import BENCHMARK_MODEL, energy_of, make_generation_run
from run_factory import PI, make_run

from edgelm.errors import InputError
from edgelm.report import Result, check, parse
from edgelm.report.figures import FIELDS, NotMeasured, figures_of
from edgelm.report.foreign import parse_benchmark_model


def _check(result: Result, text: str, battery_wh: float | None = None) -> tuple[bool, tuple[str, ...]]:
    (checked,) = check([result], parse(text), battery_wh=battery_wh)
    return checked.passed, checked.reasons


def test_a_run_that_keeps_everything() -> None:
    run = make_run()
    assert _check(run, "p90 < 20ms and accuracy > 0.85 and size < 6MiB and not p99 > 20ms") == (True, ())


def test_what_stands_in_the_way_is_told_and_nothing_else() -> None:
    run = make_run(size_bytes=5_612_345, accuracy=0.912)
    passed, reasons = _check(run, "size < 1MB and accuracy > 85% and (accuracy > 95% or size < 2MB)")
    assert not passed
    assert reasons == (
        "size is 5.61 MB, and size < 1MB is asked for",
        "accuracy is 91.2 %, and accuracy > 95% is asked for",
        "size is 5.61 MB, and size < 2MB is asked for",
    )
    assert _check(run, "not accuracy > 85%") == (False, ("accuracy is 91.2 %, and accuracy > 85% is not to be",))


def test_a_figure_that_was_not_measured_keeps_nothing() -> None:
    run = make_run(accuracy=None, queries=50)
    for text in ("accuracy > 0.1", "not accuracy > 0.1", "accuracy > 0.1 and size > 0B"):
        passed, reasons = _check(run, text)
        assert not passed
        assert reasons[0].startswith("accuracy is not measured (no labelled data was given to the converter)")
    assert _check(run, "p99 < 1s")[1] == (
        "p99 is not measured (50 queries are too few for it), and p99 < 1s is asked for",
    )
    # The rest may decide it.
    assert _check(run, "accuracy > 0.1 or size > 0B") == (True, ())
    assert not _check(run, "accuracy > 0.1 and size < 0B")[0]


def test_three_values_follow_kleene() -> None:
    # True, false and unknown of one run, as figures.
    run = make_run(accuracy=None)
    words = {True: "size > 0B", False: "size < 0B", None: "accuracy > 0"}
    for one, other in product(words, repeat=2):
        both = min((one, other), key=lambda value: {False: 0, None: 1, True: 2}[value])
        either = max((one, other), key=lambda value: {False: 0, None: 1, True: 2}[value])
        assert _check(run, f"{words[one]} and {words[other]}")[0] is (both is True)
        assert _check(run, f"{words[one]} or {words[other]}")[0] is (either is True)
        assert _check(run, f"not ({words[one]} or {words[other]})")[0] is (either is False)


def test_emulated_timings_keep_nothing() -> None:
    run = make_run(machine=dataclasses.replace(PI, emulated_on="x86_64"), match=False)
    passed, reasons = _check(run, "p90 < 1000s")
    assert not passed
    assert "p90 is not measured (the run was executed, not measured: for a test)" in reasons[0]
    assert _check(run, "accuracy > 85% and size < 6MB") == (True, ())


def test_energy_and_battery() -> None:
    run = dataclasses.replace(make_run(), energy=energy_of(0.012))
    assert _check(run, "energy < 13mJ and energy > 11000 uJ")[0]
    # 10 Wh are 36,000 J; the gross energy of an answer is 16 mJ: 2,250,000 answers.
    assert _check(run, "answers_per_charge > 2249999 and answers_per_charge < 2250001", battery_wh=10)[0]
    assert "--battery-wh" in _check(run, "answers_per_charge > 1")[1][0]
    unreliable = dataclasses.replace(make_run(), energy=energy_of(0.012, reliable=False))
    assert "shorter than ten readings" in _check(unreliable, "energy < 1J")[1][0]
    modelled = dataclasses.replace(make_run(), energy=dataclasses.replace(energy_of(0.012), method="modelled"))
    assert "modelled, not measured" in _check(modelled, "energy < 1J")[1][0]


def test_each_kind_of_run_has_its_own_figures() -> None:
    writing = make_generation_run(tokens_per_s=40)
    assert _check(writing, "decode_tokens_per_s > 39 and ttft < 1s and token_p99 < 50ms and depth == 0")[0]
    assert "a language model's run does not have it" in _check(writing, "p90 < 1s")[1][0]
    assert "only language models have it" in _check(make_run(), "ttft < 1s")[1][0]
    foreign = parse_benchmark_model(BENCHMARK_MODEL, device="phone")
    assert _check(foreign, "p50 < 57ms and mean < 57ms")[0]
    assert "benchmark_model does not report it" in _check(foreign, "p90 < 1s")[1][0]


def test_every_figure_is_there_or_says_why_not() -> None:
    for result in (make_run(), make_run(accuracy=None, queries=1), make_generation_run()):
        figures = figures_of(result, None)
        assert figures.keys() == FIELDS.keys()
        assert all(value.reason if isinstance(value, NotMeasured) else value >= 0 for value in figures.values())


def test_nothing_to_check() -> None:
    with pytest.raises(InputError, match="no run to check"):
        check([], parse("p50 < 1s"))
