"""Real time, MLPerf and sustained load: their arithmetic, and each once from end to end."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from bundle_factory import make_classifier_bundle, make_generating_bundle
from edgelm_runtimes.machine import FrequencyPolicy, ThermalZone, Throttling
from in_process import without_processes

from edgelm.bench import Conditions, Run, Samples, TimelinePoint, benchmark, benchmark_generation
from edgelm.bench.mlperf import mlperf_fields
from edgelm.bench.protocol import Attend, Spin
from edgelm.bench.realtime import arrival_times, chunks, real_time
from edgelm.bench.sustained import SteadyRule, is_steady, sustained
from edgelm.bench.timeline import timeline
from edgelm.bench.watch import Snapshot, Watcher, busy_s, process_s
from edgelm.bench.worker import Answer, Query, attend, spin
from edgelm.errors import InputError


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier_bundle(tmp_path_factory.mktemp("bundles"), fake_files=True)


class Clock:
    """Moves when a query works or someone sleeps, and a microsecond whenever it is read."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.slept: list[float] = []

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += round(seconds * 1e9)

    def query(self, seconds: float) -> Query:
        def ask() -> None:
            self.now_ns += round(seconds * 1e9)

        return Query(ask, lambda _: Answer())


def test_arrivals() -> None:
    assert arrival_times(4.0, 1.0, "fixed", 0) == (0.0, 0.25, 0.5, 0.75)
    assert arrival_times(0.1, 1.0, "fixed", 0) == (0.0,)
    drawn = arrival_times(100.0, 100.0, "poisson", 3)
    assert drawn == arrival_times(100.0, 100.0, "poisson", 3) != arrival_times(100.0, 100.0, "poisson", 4)
    # 10,000 are expected with a deviation of 100; gaps are exponential, so their deviation is their mean: 5 sigma each.
    assert len(drawn) == pytest.approx(10_000, abs=500)
    gaps = [after - before for before, after in pairwise(drawn)]
    assert np.std(gaps) == pytest.approx(fmean(gaps), rel=0.1)
    pieces = chunks(drawn, 5.0)
    assert [at for piece in pieces for at in piece] == list(drawn)
    assert all(piece[-1] - piece[0] <= 5 for piece in pieces)


def test_a_query_waits_for_its_time_and_for_those_before_it() -> None:
    clock = Clock()
    request = Attend(origin_ns=0, arrivals_s=(0.1, 0.11, 0.5), stop_s=10, first=0)
    told = attend([clock.query(0.05)], request, clock=clock, sleep=clock.sleep)
    assert told.samples.latency_s == pytest.approx((0.05,) * 3, abs=1e-5)
    assert told.samples.queue_s is not None
    assert told.samples.queue_s == pytest.approx((0, 0.04, 0), abs=1e-5)
    assert told.samples.at_s == pytest.approx((0.1, 0.15, 0.5), abs=1e-5)
    assert len(clock.slept) == 2  # the second one was late already
    assert sum(clock.slept) < 0.1 + 0.35  # and the last millisecond is awake


def test_a_queue_that_grows_is_ended() -> None:
    clock = Clock()
    request = Attend(origin_ns=0, arrivals_s=tuple(index / 100 for index in range(100)), stop_s=2.0, first=0)
    told = attend([clock.query(0.1)], request, clock=clock, sleep=clock.sleep)
    assert len(told.samples.latency_s) == 20
    found = real_time(told.samples, arrived=100, rate_per_s=100, arrivals="fixed", deadline_s=0.5)
    assert (found.arrived, found.served) == (100, 20)
    # The n-th waits for 90 ms more than the one before: within 500 ms are the first five, of a hundred that came.
    assert found.hit_rate == 0.05
    assert found.utilisation == pytest.approx(1, abs=0.01)
    assert found.response.p50_s == pytest.approx(0.1 + 9 * 0.09, abs=1e-3)


def test_real_time_from_end_to_end(bundle: Path) -> None:
    (run,) = benchmark(
        bundle,
        mode="realtime",
        runtime="fake",
        rate_per_s=100,
        seconds=0.5,
        arrivals="fixed",
        deadline_s=5.0,
        meter="none",
    )
    assert run.realtime is not None
    assert (run.realtime.arrived, run.realtime.served, run.realtime.hit_rate) == (50, 50, 1.0)
    assert run.results.deadline_hit_rate == 1.0
    assert run.samples.queue_s is not None
    assert run.samples.at_s is not None
    assert run.samples.at_s[-1] >= 0.49  # none is answered before it came
    assert Run.from_json(run.to_json()) == run
    with pytest.raises(InputError, match="how many queries arrive"):
        benchmark(bundle, mode="realtime", runtime="fake")
    with pytest.raises(InputError, match="for real time"):
        benchmark(bundle, mode="quick", runtime="fake", rate_per_s=1.0)
    with pytest.raises(InputError, match="Did you mean 'standard'"):
        benchmark(bundle, mode="standart")


def test_mlperf_asks_for_enough_queries_and_time() -> None:
    samples = Samples(latency_s=tuple(index / 1e3 for index in range(1, 2001)))
    fields = mlperf_fields(samples, name="tiny", seconds=2001.0)
    assert fields["result_validity"] == "VALID"
    assert fields["90th percentile latency (ns)"] == fields["90.00 percentile latency (ns)"] == 1_800_000_000
    assert fields["scenario"] == "SingleStream"
    assert (fields["min_duration"], fields["min_query_count"]) == (60_000, 1024)
    assert "median energy per inference (J)" not in fields
    assert mlperf_fields(samples, name="tiny", seconds=59.9)["Min duration satisfied"] is False
    few = Samples(latency_s=(1.0,) * 1023)
    assert mlperf_fields(few, name="tiny", seconds=1023)["result_validity"] == "INVALID"
    assert (
        mlperf_fields(samples, name="t", seconds=99, energy_j=[5, 1, 3, 2, 4])["median energy per inference (J)"] == 3
    )


def point(at_s: float, p50_s: float, temperature_c: float | None) -> TimelinePoint:
    return TimelinePoint(
        at_s=at_s, p50_s=p50_s, tokens_per_s=None, clock_hz=None, temperature_c=temperature_c, limits=(), others_cores=0.0,
        power_w=None,
    )  # fmt: skip


def heating(seconds: int, *, constant_s: float = 120.0) -> list[TimelinePoint]:
    """Return a board of one heat capacity: 40 °C to 80 °C, and a clock that falls above 70 °C."""
    points = []
    for at in range(5, seconds, 5):
        temperature = 80 - 40 * np.exp(-at / constant_s)
        points.append(point(at, 0.010 * (1 + max(0.0, temperature - 70) * 0.02), float(temperature)))
    return points


def test_a_board_is_steady_when_it_has_heated_up() -> None:
    rule = SteadyRule()
    assert not is_steady(heating(200), rule)  # less than a window
    assert not is_steady(heating(400), rule)
    assert is_steady(heating(1500), rule)
    points = heating(1500)
    found = sustained(points, [(one.at_s, one.p50_s or 0, None) for one in points], rule)
    assert found.steady
    assert found.steady_at_s is not None
    # The median slope of a window is about that of its middle: 40 °C / 120 s * exp(-t / 120 s) falls to 0.2 °C a minute,
    # 1/300 °C a second, at t = 120 s * ln(100) = 553 s, and the window's middle is 150 s before its end.
    assert found.steady_at_s == pytest.approx(553 + 150, abs=60)
    assert [checkpoint.at_s for checkpoint in found.checkpoints] == pytest.approx([0, 60, 600, 1495], abs=1)
    assert found.checkpoints[0].ratio == 1
    assert found.checkpoints[-1].ratio == pytest.approx(1.2, abs=0.01)
    assert "0.5%" in found.criterion


def test_one_spoiled_point_does_not_unsettle_and_no_sensor_is_no_obstacle() -> None:
    rule = SteadyRule()
    points = [point(at, 0.01, None) for at in range(5, 700, 5)]
    points[100] = point(points[100].at_s, 0.05, None)
    assert is_steady(points, rule)
    slower = [point(at, 0.01 * (1 + at / 60 * 0.02), None) for at in range(5, 700, 5)]
    assert not is_steady(slower, rule)


def test_sustained_from_end_to_end(bundle: Path, tmp_path: Path) -> None:
    # A point each tenth of a second: a machine that stands still for most of the time still leaves some.
    (run,) = benchmark(bundle, mode="sustained", runtime="fake", seconds=4.0, meter="none")
    assert run.sustained is not None
    assert not run.sustained.steady
    assert run.sustained.checkpoints[0].at_s == 0
    assert len(run.timeline) >= 3
    assert all(one.at_s <= other.at_s for one, other in pairwise(run.timeline))
    assert any(point.p50_s is not None for point in run.timeline)
    with pytest.raises(InputError, match="would begin hot"):
        benchmark([bundle] * 2, mode="sustained", runtime="fake")
    talker = make_generating_bundle(tmp_path, context_length=64)
    (model,) = benchmark_generation(
        talker, mode="sustained", runtime="fake", prefill_tokens=4, decode_tokens=3, seconds=0.5, meter="none"
    )
    assert model.sustained is not None
    assert model.sustained.checkpoints[-1].tokens_per_s is not None
    with pytest.raises(InputError, match="not for language models"):
        benchmark_generation(talker, mode="mlperf", runtime="fake")


def test_spinning_keeps_nothing_but_a_count() -> None:
    clock = Clock()
    assert spin([clock.query(0.1)], Spin(first=0, seconds=0.95), clock=clock).queries == 10
    assert spin([clock.query(5)], Spin(first=0, seconds=0), clock=clock).queries == 1


STAT = "cpu  100 10 50 900 40 5 5 30 7 0\ncpu0 50 5 25 450 20 2 3 15 0 0\n"


def test_the_kernels_counts() -> None:
    assert busy_s(STAT, 100) == pytest.approx((100 + 10 + 50 + 5 + 5 + 30) / 100)
    process = "12 (a) b) S 1 1 1 0 -1 4194304 90 0 0 0 250 150 0 0 20 0 1 0 100 1 1"
    assert process_s(process, 100) == pytest.approx(4.0)
    for text in ("", "cpu0 1 2", "cpu 1 2 3"):
        with pytest.raises(ValueError, match="no line"):
            busy_s(text, 100)
    with pytest.raises(ValueError, match="no line"):
        process_s("12 (a) S", 100)


def test_what_others_did_is_what_the_benchmark_did_not(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "stat").write_text(STAT)
    watcher = Watcher([7], conditions=lambda: CONDITIONS, root=tmp_path)
    own = "7 (x) S 1 1 1 0 -1 4194304 90 0 0 0 {} 0 0 0 20 0 1 0 100 1 1"
    (proc / "7/stat").write_text(own.format(0))
    assert watcher._others(10.0) is None
    (proc / "stat").write_text(STAT.replace("cpu  100", "cpu  400"))  # 3 s of all cores in 2 s, 1 s of it ours
    (proc / "7/stat").write_text(own.format(100))
    assert watcher._others(12.0) == pytest.approx(1.0)
    (proc / "stat").unlink()
    assert watcher._others(14.0) is None
    assert watcher.background() is None


CONDITIONS = Conditions(
    load_average_1min=None,
    thermal_zones=(ThermalZone(name="a", temperature_c=50.0), ThermalZone(name="b", temperature_c=60.0)),
    frequency_policies=(
        FrequencyPolicy(cpus=(0, 1, 2), governor=None, current_hz=1000, max_hz=None, hardware_max_hz=None),
        FrequencyPolicy(cpus=(3,), governor=None, current_hz=2000, max_hz=None, hardware_max_hz=None),
    ),
    throttling=Throttling(now=("throttled",), occurred=()),
)


def test_a_timeline_has_the_machine_and_the_work_of_each_interval() -> None:
    snapshots = [Snapshot(100 + at, 0.5, CONDITIONS if at % 2 == 0 else None) for at in range(5)]
    work = [(0.5, 0.1, 10.0), (1.5, 0.3, 30.0), (2.5, 0.7, None)]
    first, second = timeline(snapshots, work, 100.0)
    assert (first.at_s, second.at_s) == (2.0, 4.0)
    assert (first.p50_s, first.tokens_per_s) == (0.1, 10.0)
    assert (second.p50_s, second.tokens_per_s) == (0.7, None)
    assert (first.clock_hz, first.temperature_c, first.limits, first.others_cores) == (1250, 60.0, ("throttled",), 0.5)
    assert json.dumps(first.power_w) == "null"
