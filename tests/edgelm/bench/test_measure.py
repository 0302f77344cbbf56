from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import edgelm_device_profiles as device_profiles
import pytest
from bundle_factory import TEXTS, make_classifier_bundle
from edgelm_device_profiles import Detection
from hypothesis import given
from hypothesis import strategies as st
from run_factory import PI, SERVER, make_run

from edgelm.bench import Run, Samples, benchmark, measure
from edgelm.bench.facts import profile_facts
from edgelm.bench.modes import Amount
from edgelm.bench.protocol import Load, Loaded, Measure, Measured, Spin, Spun, WarmedUp, WarmUp
from edgelm.bench.target import ProcessTarget
from edgelm.bundle import pack
from edgelm.errors import BundleError, ExecutionError, InputError, ProfileError, RuntimeUnavailableError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier_bundle(tmp_path_factory.mktemp("bundles"), fake_files=True)


class FakeTarget:
    """Answers in a millisecond, and presses Ctrl-C when it has answered often enough."""

    interrupt_after: int | None = None
    order: list[str] = []  # noqa: RUF012 - shared on purpose

    pid = 0

    def __init__(self, name: str) -> None:
        self._name = name
        self.closed = False

    def load(self, request: Load) -> Loaded:
        return Loaded(
            facts=make_run().runtime,
            artifact_file="model.tflite",
            input_count=3,
            load_s=0.1,
            first_inference_s=0.01,
            baseline_memory_bytes=None,
            overhead_s=1e-6,
        )

    def warm_up(self, request: WarmUp) -> WarmedUp:
        if self.interrupt_after == 0:
            raise KeyboardInterrupt
        return WarmedUp(queries=20, settled=True)

    def measure(self, request: Measure) -> Measured:
        self.order.append(self._name)
        if self.interrupt_after is not None and len(self.order) > self.interrupt_after:
            raise KeyboardInterrupt
        count = min(request.queries, max(1, round(request.seconds / 0.001)))
        return Measured(
            samples=Samples(latency_s=(0.001,) * count, at_s=(0.0,) * count), truncated=(1,), peak_memory_bytes=7
        )

    def spin(self, request: Spin) -> Spun:
        return Spun(queries=max(1, round(request.seconds / 0.001)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_targets(monkeypatch: pytest.MonkeyPatch) -> type[FakeTarget]:
    monkeypatch.setattr(FakeTarget, "order", [])
    numbers = itertools.count()
    monkeypatch.setattr(measure, "ProcessTarget", lambda name: FakeTarget(str(next(numbers))))
    return FakeTarget


def test_measures_a_bundle(bundle: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    before = time.perf_counter()
    (run,) = benchmark(
        bundle, runtime="fake", queries=30, deadline_s=60.0, meter="none", progress=lambda *step: steps.append(step)
    )
    took = time.perf_counter() - before
    results, samples = run.results, run.samples
    assert results.queries == len(samples.latency_s) == 30
    assert results.deadline_hit_rate == 1.0
    assert 0 < results.min_s <= results.p50_s <= results.max_s < took
    assert 0 < results.load_s < took
    assert 0 < results.first_inference_s < took
    assert samples.tokenize_s is not None
    assert samples.run_s is not None
    for latency, tokenize, ran in zip(samples.latency_s, samples.tokenize_s, samples.run_s, strict=True):
        assert tokenize + ran <= latency + 2e-9  # each of the three is rounded to a nanosecond
    # An interpreter with NumPy needs more than 10 MB, and this bundle not a gigabyte.
    assert results.baseline_memory_bytes is not None
    assert results.peak_memory_bytes is not None
    assert 10e6 < results.baseline_memory_bytes <= results.peak_memory_bytes < 1e9
    assert sum(bucket.queries for bucket in results.buckets) == 30
    assert run.bundle.name == "tiny"
    assert run.runtime.runtime == "fake"
    assert run.settings.input_count == len(TEXTS)
    assert run.settings.inputs == "golden"
    assert run.energy.per_inference_j is None
    assert run.energy.method == "not measured"
    assert run.stopped is None
    assert run.evidence == "measured"
    # The bound is the benchmark's promise. The clock of a busy machine may add some; a microsecond is what it takes here.
    assert results.overhead_s is not None
    assert 0 < results.overhead_s < 20e-6
    assert samples.at_s is not None
    assert samples.block is not None
    assert all(0 <= at < took for at in samples.at_s)
    assert Run.from_json(run.to_json()) == run
    assert steps[0] == ("load", 0, 1)
    assert steps[-1] == ("measure", 100, 100)


def test_measures_several_in_turns(bundle: Path, tmp_path: Path) -> None:
    other = make_classifier_bundle(tmp_path, name="other", fake_files=True)
    packed = pack(other, tmp_path / "packed.edgelm", force=False)
    runs = benchmark([bundle, packed], runtime=["fake"], queries=5, texts=["where is my card", "cash " * 40])
    assert [run.bundle.name for run in runs] == ["tiny", "other"]
    assert len({run.id for run in runs}) == 2
    for run in runs:
        assert run.results.queries == 5
        assert run.settings.alternated_with == 1
        assert run.settings.inputs == "given"
        assert run.settings.truncated_inputs == 1


def test_measures_arrays(tmp_path: Path) -> None:
    bundle = make_classifier_bundle(tmp_path, role="raw", tokenizer=False, fake_files=True)
    (run,) = benchmark(bundle, runtime="fake", queries=3)
    assert run.samples.tokenize_s is None
    assert run.samples.tokens is not None
    assert run.results.tokenize_p50_s is None
    with pytest.raises(InputError, match="takes arrays"):
        benchmark(bundle, runtime="fake", queries=3, texts=["a"])


def test_measures_embeddings(tmp_path: Path) -> None:
    bundle = make_classifier_bundle(tmp_path, role="embedding", labels=None, fake_files=True)
    (run,) = benchmark(bundle, runtime="fake", queries=3)
    assert run.bundle.task == "embed"
    assert run.samples.tokens is not None
    assert run.samples.sequence_length is not None


def test_manifest_fingerprint_is_that_of_the_file(bundle: Path) -> None:
    digest = subprocess.run(
        ["sha256sum", str(bundle / "manifest.json")], capture_output=True, text=True, check=True
    ).stdout
    (run,) = benchmark(bundle, runtime="fake", queries=1)
    assert run.bundle.manifest_sha256 == digest.split()[0]


def test_a_foreign_profile_is_said(bundle: Path) -> None:
    (run,) = benchmark(bundle, runtime="fake", queries=1, profile="raspberry-pi-5")
    assert run.profile is not None
    if not (run.machine.device_model or "").startswith("Raspberry Pi 5"):
        assert not run.profile.match
        assert "not on Raspberry Pi 5" in run.profile.statement


def test_profile_facts() -> None:
    pi = device_profiles.load("raspberry-pi-5")
    here = Detection(profile="raspberry-pi-5", generic=False, attached=(), evidence=(), warnings=())
    there = Detection(profile="x86-64", generic=True, attached=(), evidence=(), warnings=())
    assert profile_facts(pi, here, PI).match
    assert profile_facts(pi, here, PI).statement == "Measured on Raspberry Pi 5."
    assert profile_facts(pi, there, SERVER).statement == "Measured on AMD EPYC 9R14 (x86_64), not on Raspberry Pi 5."
    emulated = profile_facts(pi, here, dataclasses.replace(PI, emulated_on="x86_64"))
    assert not emulated.match
    assert emulated.statement.startswith("Executed on")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": 0}, InputError, "queries is 0"),
        ({"seconds": -1.0}, InputError, "seconds is -1"),
        ({"seconds": float("nan")}, InputError, "seconds is nan"),
        ({"deadline_s": float("inf")}, InputError, "deadline_s is inf"),
        ({"texts": []}, InputError, "no text"),
        ({"texts": "a text"}, InputError, "a list"),
        ({"profile": "raspberry-pi-55"}, ProfileError, "raspberry-pi-5"),
        ({"runtime": "litret"}, RuntimeUnavailableError, "litert"),
        ({"texts": ["a", " "]}, InputError, "tiny in fake"),
    ],
)
def test_refusals(bundle: Path, arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        benchmark(bundle, **{"runtime": "fake", "queries": 2, **arguments})  # type: ignore[arg-type]


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.edgelm"):
        benchmark(tmp_path / "none.edgelm")
    with pytest.raises(InputError, match="no bundle"):
        benchmark([])


def test_a_process_that_dies_is_reported(bundle: Path) -> None:
    target = ProcessTarget("tiny in fake")
    os.kill(target._process.pid, signal.SIGKILL)
    with pytest.raises(ExecutionError, match=r"tiny in fake: .*signal 9"):
        target.warm_up(WarmUp(seconds=1, queries=1))
    target.close()


def test_what_a_dying_process_said_last_is_reported() -> None:
    target = ProcessTarget("tiny")
    with pytest.raises(ExecutionError, match=r"exit status 1; (ZeroDivision|Index)Error"):
        target.measure(Measure(first=0, seconds=1, queries=1, settle=False))  # nothing was loaded
    target.close()


def test_processes_end(bundle: Path) -> None:
    target = ProcessTarget("tiny")
    target.load(Load(path=str(bundle), runtime="fake", threads=1, texts=("card",), golden=""))
    target.close()
    assert target._process.returncode == 0


def test_a_process_that_is_interrupted_in_its_turn_cleans_up(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    target = ProcessTarget("tiny")
    target.load(Load(path=str(packed), runtime="fake", threads=1, texts=("card",), golden=""))
    assert list(tmp_path.glob("edgelm-*"))
    assert target._process.stdin is not None
    # Its reply, three thousand queries, is more than a pipe holds.
    request = Measure(first=0, seconds=60, queries=3000, settle=False)
    target._process.stdin.write(json.dumps(dataclasses.asdict(request)) + "\n")
    target._process.stdin.flush()
    target.close()
    assert target._process.returncode == 0
    assert not list(tmp_path.glob("edgelm-*"))


def test_turns_are_drawn_anew_each_round(bundle: Path, fake_targets: type[FakeTarget]) -> None:
    runs = benchmark([bundle] * 3, runtime=["fake"], seconds=2.0, meter="none", seed=1)
    order = [int(name) for name in fake_targets.order]
    rounds = [tuple(order[index : index + 3]) for index in range(0, len(order), 3)]
    assert len(runs) == 3
    assert len(rounds) == 20  # a twentieth of two seconds each
    assert all(sorted(each) == [0, 1, 2] for each in rounds)
    assert len(set(rounds)) > 1
    for run in runs:
        assert run.samples.block == tuple(block for block in range(20) for _ in range(100))
        assert run.session == runs[0].session
        assert run.settings.order_seed == 1
    again = list(fake_targets.order)
    fake_targets.order.clear()
    benchmark([bundle] * 3, runtime=["fake"], seconds=2.0, meter="none", seed=1)
    assert [int(name) - 3 for name in fake_targets.order] == [int(name) for name in again]


def test_ctrl_c_keeps_what_was_measured(
    bundle: Path, fake_targets: type[FakeTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_targets, "interrupt_after", 3)
    runs = benchmark([bundle] * 2, runtime="fake", queries=100_000)
    assert [run.stopped for run in runs] == ["Ctrl-C", "Ctrl-C"]
    assert sum(run.results.queries for run in runs) == 750
    assert runs[0].settings.truncated_inputs == 1


def test_ctrl_c_leaves_out_what_was_not_begun(
    bundle: Path, fake_targets: type[FakeTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_targets, "interrupt_after", 1)
    assert len(benchmark([bundle] * 2, runtime="fake", queries=100_000)) == 1


def test_ctrl_c_before_the_first_query_is_an_interrupt(
    bundle: Path, fake_targets: type[FakeTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_targets, "interrupt_after", 0)
    with pytest.raises(KeyboardInterrupt):
        benchmark(bundle, runtime="fake")


def test_ctrl_c_on_a_terminal_keeps_the_processes_in_order(bundle: Path) -> None:
    # A terminal sends SIGINT to the whole process group: the measured process must not die of it.
    program = (
        "import sys; from edgelm.bench import benchmark\n"
        "told = lambda step, done, total: print(step, flush=True)\n"
        f"run, = benchmark({str(bundle)!r}, runtime='fake', seconds=600, progress=told)\n"
        "print('interrupted', run.interrupted, run.results.queries > 0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "measure\n":
            os.killpg(process.pid, signal.SIGINT)
            break
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted True True"
    assert process.returncode == 0


@given(st.integers(0, 20_000), st.floats(0, 100))
def test_the_quick_amount(queries: int, seconds: float) -> None:
    amount = Amount()
    assert amount.reached(queries, seconds) == ((queries >= 200 and seconds >= 3) or seconds >= 30 or queries >= 10_000)
    assert 0 <= amount.share(queries, seconds) <= 1
    assert (amount.share(queries, seconds) == 1) == amount.reached(queries, seconds)


@given(st.integers(1, 1000), st.none() | st.floats(0.01, 100), st.integers(0, 2000), st.floats(0, 200))
def test_an_amount_that_was_asked_for(most: int, longest: float | None, queries: int, seconds: float) -> None:
    amount = Amount(queries=most, seconds=longest)
    assert amount.reached(queries, seconds) == (queries >= most or (longest is not None and seconds >= longest))
    assert (amount.share(queries, seconds) == 1) == amount.reached(queries, seconds)
    assert amount.turn_queries(min(queries, most), alone=True) == most - min(queries, most)
    assert amount.turn_queries(min(queries, most), alone=False) <= max(1, most / 20 + 1)


@pytest.mark.parametrize("runtime", ["litert", "onnx"])
def test_measures_a_real_runtime(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip({"litert": "ai_edge_litert", "onnx": "onnxruntime"}[runtime])
    bundle = make_classifier_bundle(tmp_path)
    (run,) = benchmark(bundle, runtime=runtime, queries=20)
    assert run.runtime.runtime == runtime
    assert run.bundle.format == {"litert": "tflite", "onnx": "onnx"}[runtime]
    assert run.results.queries == 20
