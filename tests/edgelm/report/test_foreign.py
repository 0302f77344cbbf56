from __future__ import annotations

import builtins
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from report_factory import AI_HUB, BENCHMARK_MODEL, LLAMA_BENCH, make_generation_run
from run_factory import PI, make_run

from edgelm.bench import log
from edgelm.errors import InputError, MissingPackageError
from edgelm.report import read_results
from edgelm.report.foreign import parse_ai_hub, parse_benchmark_model, parse_llama_bench
from edgelm.report.rows import group_runs


def test_llama_bench_joins_the_prompt_and_the_answer() -> None:
    (run,) = parse_llama_bench(LLAMA_BENCH)
    assert run.source == "llama-bench 8cf427ff (5163)"
    assert (run.model, run.recipe, run.runtime) == ("qwen2.5-0.5b-instruct-q4_0", "qwen2 1B Q4_0", "llama.cpp CPU")
    assert (run.device, run.threads, run.depth, run.generates) == ("4x Arm Cortex-A76", 4, 0, True)
    assert run.figures["prefill_tokens_per_s"] == 125.0
    assert run.figures["decode_tokens_per_s"] == 20.0
    assert run.figures["size"] == 352151552
    # 6.4 s for 128 tokens.
    assert run.figures["reported_latency"] == pytest.approx(0.05)
    assert "token_p50" not in run.figures


def test_llama_bench_in_lines_is_the_same() -> None:
    rows = json.loads(LLAMA_BENCH)
    assert parse_llama_bench("\n".join(json.dumps(row) for row in rows)) == parse_llama_bench(LLAMA_BENCH)


def test_llama_bench_keeps_depths_and_other_amounts_apart() -> None:
    prompt, answer = json.loads(LLAMA_BENCH)
    rows = [prompt, answer, {**answer, "n_depth": 512, "avg_ts": 17.0}, {**answer, "n_gen": 32, "avg_ts": 21.0}]
    runs = parse_llama_bench(json.dumps(rows))
    assert [(run.depth, run.figures["decode_tokens_per_s"]) for run in runs] == [(0, 20.0), (512, 17.0), (0, 21.0)]
    assert len({run.id for run in runs}) == 3


def test_llama_bench_on_a_gpu_is_of_the_gpu() -> None:
    row = {**json.loads(LLAMA_BENCH)[1], "backends": "CUDA", "gpu_info": "NVIDIA GeForce RTX 4080"}
    (run,) = parse_llama_bench(json.dumps([row]))
    assert (run.device, run.runtime) == ("NVIDIA GeForce RTX 4080", "llama.cpp CUDA")


def test_llama_bench_reads_our_own_rows() -> None:
    ours = make_generation_run(tokens_per_s=40)
    runs = parse_llama_bench(json.dumps(ours.llama_bench_rows()))
    # Their mean of the repetitions against our median: the seed draws 63 tokens with a spread of 5 %, so a mean is within
    # 5 % / sqrt(63) = 0.6 %, and five of them within 2 %.
    speeds = [run.figures["decode_tokens_per_s"] for run in runs if "decode_tokens_per_s" in run.figures]
    assert speeds == [pytest.approx(40, rel=0.02)]
    assert [run.depth for run in runs] == [0, 128]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"model_filename": "a", "n_gen": 1', "not valid JSON"),
        ('[{"model_filename": "a", "n_gen": 1}]', "lacks n_prompt, avg_ts"),
        ('[1, {"model_filename": "a", "n_gen": 1}]', "no object"),
    ],
)
def test_damaged_llama_bench(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_llama_bench(text)


def test_benchmark_model() -> None:
    run = parse_benchmark_model(BENCHMARK_MODEL, device="pixel-8")
    assert (run.model, run.device, run.threads, run.runtime) == ("mobilebert_int8", "pixel-8", 4, "tflite + XNNPACK")
    assert run.figures == pytest.approx(
        {
            "load": 0.03337,
            "first_inference": 0.081913,
            "mean": 0.0562658,
            "queries": 50,
            "min": 0.054669,
            "max": 0.060236,
            "p50": 0.056201,
            "jitter": 0.000982,
            "size": 26411600,
            "peak_memory": 93.25 * 2**20,
        }
    )
    assert run.placement == {"cpu, XNNPACK": 780, "cpu": 22}


def test_benchmark_model_of_2020_through_logcat() -> None:
    log_lines = (
        "09-14 10:11:12.345  1234  1250 I tflite  : Graph: [/data/local/tmp/a b.tflite]",
        "09-14 10:11:12.345  1234  1250 I tflite  : count=50 first=2990275 curr=2913402 min=2727568 max=3189954 "
        "avg=2.95034e+06 std=109798",
        "09-14 10:11:12.345  1234  1250 I tflite  : Inference timings in us: Init: 17187, First inference: 3512391, "
        "Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06",
    )
    run = parse_benchmark_model("\n".join(log_lines), device="phone")
    assert run.model == "a b"
    assert run.figures["mean"] == pytest.approx(2.95034)
    assert "p50" not in run.figures
    assert "peak_memory" not in run.figures
    assert run.placement == {}


def test_two_summaries_are_refused() -> None:
    with pytest.raises(InputError, match="holds 2 lines with timings"):
        parse_benchmark_model(BENCHMARK_MODEL * 2, device="phone")


def test_ai_hub() -> None:
    classifier, writer = parse_ai_hub(AI_HUB, model="albert")
    assert (classifier.device, classifier.model, classifier.recipe) == (
        "Samsung Galaxy S24",
        "Albert-Base-V2-Hf",
        "float",
    )
    assert classifier.figures == pytest.approx({"reported_latency": 0.017256, "peak_memory": 339 * 2**20})
    assert classifier.placement == {"npu": 550}
    assert not classifier.generates
    assert (writer.device, writer.runtime, writer.generates) == ("Snapdragon X Elite CRD", "qnn_context_binary", True)
    assert writer.figures == pytest.approx({"decode_tokens_per_s": 9.5, "ttft": 0.238545})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n- name: old", "no 'precisions'"),
        ("precisions: {float: {components: {}}}", "no measurement that succeeded"),
        ("precisions: {float: [1]}", "does not have AI Hub's structure"),
        ("a: [", "not valid YAML"),
        ("precisions: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_damaged_ai_hub(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_ai_hub(text, model="a")


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(
        name: str,
        names: Mapping[str, object] | None = None,
        local_names: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if name == "yaml":
            raise ImportError(name)
        return real(name, names, local_names, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackageError, match=r"edgelm\[report\]"):
        parse_ai_hub(AI_HUB, model="a")


def test_files_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(LLAMA_BENCH, encoding="utf-8")
    (tmp_path / "pixel-8.txt").write_text(BENCHMARK_MODEL, encoding="utf-8")
    (tmp_path / "albert").mkdir()
    (tmp_path / "albert" / "perf.yaml").write_text(AI_HUB, encoding="utf-8")
    log.write([make_run(), make_generation_run()], tmp_path / "own.json")
    names = ("own.json", "llama.json", "pixel-8.txt", "albert/perf.yaml", "llama.json")
    found = read_results([tmp_path / name for name in names])
    assert [type(result).__name__ for result in found] == ["Run", "GenerationRun", *["ForeignRun"] * 4]
    (tmp_path / "else.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"else\.json"):
        read_results([tmp_path / "else.json"])
    with pytest.raises(InputError, match="cannot be read"):
        read_results([tmp_path / "nowhere.json"])


def test_a_foreign_run_joins_the_machine_that_it_names_and_takes_no_part_in_the_verdict() -> None:
    (foreign,) = parse_llama_bench(LLAMA_BENCH)
    assert foreign.device == PI.cpu_model
    groups = group_runs([foreign, make_generation_run(tokens_per_s=4)])
    assert len(groups) == 1
    assert [row.source for row in groups[0].rows] == [None, "llama-bench 8cf427ff (5163)"]
