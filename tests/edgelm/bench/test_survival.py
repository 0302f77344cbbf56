"""What is left of a benchmark that something ends, and how it goes on."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from bundle_factory import make_classifier_bundle, make_generating_bundle
from in_process import InProcess, InProcessModel, without_processes

from edgelm.bench import GenerationRun, Run, benchmark, benchmark_generation, measure, session
from edgelm.bench.generation_worker import Generate
from edgelm.bench.output import reserved
from edgelm.bench.protocol import Measure, Measured
from edgelm.bench.target import ProcessTarget
from edgelm.errors import ExecutionError, InputError, OutputError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier_bundle(tmp_path_factory.mktemp("bundles"), fake_files=True)


class Ending:
    """What ends a measurement, after so many turns."""

    turns_left: int | None = None
    error: BaseException = KeyboardInterrupt()

    def turn(self) -> None:
        if self.turns_left is not None:
            self.turns_left -= 1
            if self.turns_left == -1:
                raise self.error


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Ending:
    end = Ending()

    class Mortal(InProcess):
        def measure(self, request: Measure) -> Measured:
            end.turn()
            return super().measure(request)

    class MortalModel(InProcessModel):
        def ask(self, request: Any, reply: type[Any]) -> Any:
            if isinstance(request, Generate):
                end.turn()
            return super().ask(request, reply)

    without_processes(monkeypatch, Mortal, MortalModel)
    return end


def test_a_lane_that_fails_keeps_what_it_had_and_the_others_go_on(bundle: Path, ending: Ending) -> None:
    ending.turns_left, ending.error = 9, ExecutionError("it died (signal 9)")
    runs = benchmark([bundle] * 2, runtime="fake", queries=40, meter="none")
    (dead,) = [run for run in runs if run.stopped is not None]
    assert len(runs) == 2
    assert dead.stopped == "it died (signal 9)"
    assert 0 < dead.results.queries < 40
    assert {run.results.queries for run in runs if run.stopped is None} == {40}
    assert any("was stopped" in caveat for caveat in runs[1].comparisons[0].caveats)


def test_a_process_that_is_killed_is_such_a_failure(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(ProcessTarget):
        turns = 0

        def measure(self, request: Measure) -> Measured:
            self.turns += 1
            if self.turns == 3:
                os.kill(self.pid, 9)
            return super().measure(request)

    monkeypatch.setattr(measure, "ProcessTarget", Killed)
    (run,) = benchmark(bundle, runtime="fake", seconds=5.0, meter="none")
    assert "signal 9" in (run.stopped or "")
    assert run.samples.block is not None
    assert max(run.samples.block) == 1


def test_a_failure_before_anything_is_an_error(bundle: Path, ending: Ending) -> None:
    ending.turns_left, ending.error = 0, ExecutionError("it died (signal 9)")
    with pytest.raises(ExecutionError, match="signal 9"):
        benchmark(bundle, runtime="fake", queries=40, meter="none")


def test_a_run_that_was_stopped_is_taken_up_again(bundle: Path, ending: Ending) -> None:
    ending.turns_left = 20
    first = benchmark([bundle] * 2, runtime="fake", queries=60, meter="none", seed=5)
    assert {run.stopped for run in first} == {"Ctrl-C"}
    assert sum(run.results.queries for run in first) == 60
    ending.turns_left = None
    second = benchmark([bundle] * 2, runtime="fake", queries=60, meter="none", resume=first)
    for before, after in zip(first, second, strict=True):
        assert after.stopped is None
        assert after.settings.resumed == 1
        assert after.results.queries == 60
        count = before.results.queries
        assert after.samples.latency_s[:count] == before.samples.latency_s
        assert after.samples.block is not None
        assert sorted(after.samples.block) == list(after.samples.block)
        assert after.samples.at_s is not None
        assert sorted(after.samples.at_s) == list(after.samples.at_s)
    assert second[1].comparisons[0].blocks == 20


def _changed(run: Run, part: str, **changes: Any) -> Run:
    changed: Any = {part: dataclasses.replace(getattr(run, part), **changes)}
    return dataclasses.replace(run, **changed)


@pytest.mark.usefixtures("ending")
def test_what_cannot_be_taken_up(bundle: Path) -> None:
    (whole,) = benchmark(bundle, runtime="fake", queries=2, meter="none")
    stopped = dataclasses.replace(whole, stopped="Ctrl-C")

    def resume(*runs: Run, mode: str = "standard", **options: Any) -> None:
        benchmark(bundle, mode=mode, runtime="fake", queries=4, meter="none", resume=runs, **options)

    for runs, mode, message in [
        ([whole], "standard", "was not stopped"),
        ([stopped, dataclasses.replace(stopped, session="other")], "standard", "several sessions"),
        ([stopped], "quick", "of the mode 'standard'"),
        ([_changed(stopped, "machine", cpu_model="another")], "standard", "and this is"),
        ([_changed(stopped, "bundle", manifest_sha256="0" * 64)], "standard", "has changed since"),
        ([_changed(stopped, "settings", mode="sustained")], "sustained", "cannot be taken up"),
    ]:
        with pytest.raises(InputError, match=message):
            resume(*runs, mode=mode)
    with pytest.raises(InputError, match="with 1 threads, which was not named"):
        resume(stopped, threads=2)


def test_a_language_model_is_taken_up_again(tmp_path: Path, ending: Ending) -> None:
    talker = make_generating_bundle(tmp_path, context_length=64)
    amounts: dict[str, Any] = {"prefill_tokens": 4, "decode_tokens": 3, "repetitions": 4, "meter": "none"}
    ending.turns_left = 3  # the warm-up, and two
    (first,) = benchmark_generation(talker, runtime="fake", **amounts)
    assert (first.stopped, len(first.samples.prefill_s)) == ("Ctrl-C", 2)
    ending.turns_left = None
    (second,) = benchmark_generation(talker, runtime="fake", resume=[first], **amounts)
    assert second.stopped is None
    assert second.samples.prefill_s[:2] == first.samples.prefill_s
    assert second.samples.block == (0, 1, 2, 3)
    assert second.settings.resumed == 1
    assert GenerationRun.from_json(second.to_json()) == second
    with pytest.raises(InputError, match="with other amounts"):
        benchmark_generation(talker, runtime="fake", resume=[first], **{**amounts, "prefill_tokens": 5})


@pytest.mark.usefixtures("ending")
def test_what_there_is_so_far_is_handed_over_and_a_full_disk_ends_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.ticker, "__kwdefaults__", {"every_s": 0.0})
    seen: list[Run] = []

    def write(runs: list[Run]) -> None:
        seen.extend(runs)
        if len(seen) == 2:
            raise OutputError("the disk is full")

    (run,) = benchmark(bundle, runtime="fake", seconds=20.0, meter="none", checkpoint=write)
    assert run.stopped == "the disk is full"
    assert seen[0].stopped == "it was still running when this was written"
    assert 0 < seen[0].results.queries < run.results.queries


def test_room_is_kept_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run.json"
    with reserved(output, 12_345):
        (held,) = tmp_path.iterdir()
        assert held.stat().st_size == 12_345
        assert not output.exists()
    assert not list(tmp_path.iterdir())
    with reserved(None):
        assert not list(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match=r"no room for .*No space left"), reserved(output):
        pytest.fail("it goes on without room")
    assert not list(tmp_path.iterdir())
