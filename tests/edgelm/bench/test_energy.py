"""The energy of a benchmark, on meters that are functions of time: what goes in is known, so what comes out is too."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from bundle_factory import make_classifier_bundle, make_generating_bundle
from in_process import without_processes

from edgelm.bench import benchmark, benchmark_generation, energy
from edgelm.bench.energy import CsvRecorder, measure_windows, record, window_s
from edgelm.bench.meter_choice import MeterChoice, choose_meter, pick
from edgelm.errors import InputError, MeterError
from edgelm.meters import FakeMeter, Found, Sampler

IDLE_W, LOAD_W = 2.0, 5.0


class Plug:
    """A supply line that knows when the load is on."""

    def __init__(self) -> None:
        self.on = False

    def power_w(self, _: float) -> float:
        return LOAD_W if self.on else IDLE_W

    def run(self, seconds: float, count: int = 100) -> int:
        self.on = True
        time.sleep(seconds)
        self.on = False
        return count


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier_bundle(tmp_path_factory.mktemp("bundles"), fake_files=True)


def test_windows_lie_between_two_rests_and_are_net_of_idle() -> None:
    plug = Plug()
    with Sampler(FakeMeter(plug.power_w, rate_hz=200.0)) as sampler:
        loads: list[tuple[float, float]] = []
        windows, trace = measure_windows(sampler, [plug.run, lambda s: plug.run(s, 7)], 0.3, loads=loads)
    assert [window.count for window in windows] == [100, 7]
    assert len(loads) == 2
    assert trace.facts.name == "fake"
    for window, (start, end) in zip(windows, loads, strict=True):
        # The bound covers what the meter did not see between its readings.
        assert window.energy.joules == pytest.approx((LOAD_W - IDLE_W) * (end - start), abs=window.energy.uncertainty_j)
        assert window.energy.gross.joules == pytest.approx(
            LOAD_W * (end - start), abs=window.energy.gross.uncertainty_j
        )
        assert window.energy.idle_w == pytest.approx(IDLE_W, abs=window.energy.uncertainty_j / (end - start))
        assert not window.energy.reliable
        assert "too short" in (window.energy.reason or "")


def test_a_meters_file_is_aligned_by_the_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as fast as real, and by a clock that is an hour off."""
    monkeypatch.setattr(energy, "SYNC_PATTERN_S", ((0.3, 0.2), (0.5, 0.4), (0.2, 0.6), (0.4, 0.3)))
    plug, lines = Plug(), ["Time (s),Power (W)"]
    file = tmp_path / "plug.csv"
    sampler = Sampler(FakeMeter(plug.power_w, rate_hz=50.0))

    class Written(CsvRecorder):
        def trace(self):  # type: ignore[no-untyped-def]
            trace = sampler.trace()
            lines.extend(f"{float(at) - 3600!r},{value}" for at, value in zip(trace.time_s, trace.value, strict=True))
            file.write_text("\n".join(lines))
            return super().trace()

    loads: list[tuple[float, float]] = []
    with sampler:
        (window,), _ = measure_windows(Written(file, loads), [plug.run], 0.7, loads=loads, pattern=True)
    assert len(loads) == 9
    duration_s = window.energy.gross.duration_s
    assert window.energy.joules == pytest.approx((LOAD_W - IDLE_W) * duration_s, abs=window.energy.uncertainty_j)
    # Whatever the bound is on a busy machine: a clock that is off by five readings of 20 ms at both ends moves 0.6 J.
    assert window.energy.joules == pytest.approx((LOAD_W - IDLE_W) * duration_s, abs=0.6)


def test_a_file_that_is_missing_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SYNC_PATTERN_S", ((0.01, 0.01),))
    with pytest.raises(MeterError, match=r"none\.csv cannot be read"):
        record(MeterChoice(csv=tmp_path / "none.csv"), [lambda _: 1], 0.01)
    with pytest.raises(MeterError, match="for a test"):
        record(MeterChoice(reason="for a test"), [lambda _: 1], 0.01)


def test_windows_are_as_long_as_the_sensor_needs() -> None:
    slow = MeterChoice(meter=FakeMeter(lambda _: 1.0, rate_hz=10.0))
    assert window_s(slow, None) == pytest.approx(11)  # 100 readings of 10 Hz, and a tenth
    assert window_s(slow, 3.0) == 3.0


def test_the_energy_of_a_run(bundle: Path) -> None:
    meter = FakeMeter(lambda _: 4.0, rate_hz=100.0)
    first, second = benchmark([bundle] * 2, runtime="fake", queries=20, meter=meter, energy_seconds=0.3)
    for run in (first, second):
        record = run.energy
        assert (record.sensor, record.scope, record.method) == ("fake", "board", "modelled")
        assert record.inferences is not None
        assert record.inferences > 10
        (window,) = record.windows
        assert record.gross_j == pytest.approx(4.0 * window.duration_s)
        # A meter that always says the same has no net energy; its readings are exact, so nothing is left but rounding.
        assert record.per_inference_j == pytest.approx(0, abs=1e-9)
        assert record.idle_w == pytest.approx(4.0)
        assert not record.reliable
        assert any("measure for at least" in note for note in record.notes)
        assert run.modelled_energy is None


def test_a_token_that_is_read_and_one_that_is_written_are_told_apart(tmp_path: Path) -> None:
    bundle = make_generating_bundle(tmp_path, context_length=64)
    # A counter that rises by 3 W at all times: net 0, and both kinds of tokens are there.
    meter = FakeMeter(lambda now: 3.0 * now, quantity="joules", rate_hz=100.0)
    (run,) = benchmark_generation(
        bundle, runtime="fake", prefill_tokens=8, decode_tokens=4, repetitions=2, meter=meter, energy_seconds=0.3
    )
    assert run.energy.prefill_j_per_token == pytest.approx(0, abs=1e-6)
    assert run.energy.decode_j_per_token == pytest.approx(0, abs=1e-6)
    assert run.energy.gross_j == pytest.approx(3.0 * run.energy.windows[0].duration_s)


def test_mlperf_takes_the_median_of_five_windows(bundle: Path) -> None:
    meter = FakeMeter(lambda now: 10.0 * now, quantity="joules", rate_hz=100.0)
    (run,) = benchmark(bundle, mode="mlperf", runtime="fake", queries=5, meter=meter, energy_seconds=0.05)
    assert len(run.energy.windows) == 5
    assert run.mlperf is not None
    assert run.mlperf["energy_windows"] == 5
    assert run.mlperf["median energy per inference (J)"] == pytest.approx(0, abs=1e-6)


def test_a_meter_that_fails_does_not_cost_the_times(bundle: Path) -> None:
    def unplugged(_: float) -> float:
        raise MeterError("it was unplugged")

    for mode, amount in (("standard", {"queries": 3}), ("sustained", {"seconds": 0.3})):
        (run,) = benchmark(bundle, mode=mode, runtime="fake", meter=FakeMeter(unplugged), energy_seconds=0.1, **amount)  # type: ignore[arg-type]
        assert run.results.queries >= 1
        assert (run.energy.method, run.energy.notes) == ("not measured", ("it was unplugged",))


def test_a_modelled_energy_stands_in_a_field_of_its_own(bundle: Path) -> None:
    (run,) = benchmark(bundle, runtime="fake", queries=3, meter="none", profile="raspberry-pi-5", model_energy=True)
    assert run.energy.method == "not measured"
    assert run.modelled_energy is not None
    assert run.profile is not None
    if run.profile.match:
        assert run.modelled_energy.method == "modelled"
    else:
        assert "not those of Raspberry Pi 5" in run.modelled_energy.notes[0]


def test_names_of_meters(tmp_path: Path) -> None:
    meter = FakeMeter(lambda _: 1.0)
    assert choose_meter(meter).meter is meter
    assert choose_meter("none") == MeterChoice(reason="no meter was asked for")
    assert choose_meter("csv:plug.csv").csv == Path("plug.csv")
    assert choose_meter("fake").meter is not None
    for name in ("csv:", "lines:", "lines:/dev/null@fast", "rapll"):
        with pytest.raises(InputError):
            choose_meter(name)
    with pytest.raises(MeterError, match="cannot be opened"):
        choose_meter(f"lines:{tmp_path / 'ttyUSB0'}")
    with pytest.raises(InputError, match="An energy window of 0"):
        benchmark(tmp_path, energy_seconds=0.0)


def test_which_of_the_meters_that_were_found() -> None:
    meter = FakeMeter(lambda _: 1.0)
    renamed = FakeMeter(lambda _: 1.0)
    renamed.facts = dataclasses.replace(meter.facts, name="ina226 (hwmon2)", sensor="hwmon-ina2xx")
    denied = Found("RAPL", "denied", None, "not for this user", "sudo chmod")
    missing = Found("INA2xx", "missing", None, "there is none", None)
    usable = Found("ina226 (hwmon2)", "usable", renamed, "board", None)
    assert pick("auto", [denied, usable]).meter is renamed
    assert pick("hwmon-ina2xx", [denied, usable]).meter is renamed
    assert pick("INA226 hwmon2", [denied, usable]).meter is renamed
    assert "RAPL: not for this user" in (pick("auto", [denied, missing]).reason or "")
    with pytest.raises(MeterError, match=r"is denied: not for this user\. To get it: sudo chmod"):
        pick("rapl", [denied])
    with pytest.raises(InputError, match="No meter is called 'rapll'"):
        pick("rapll", [denied, usable])
