"""Runs for tests of the report: of language models, with energy, over time, compared, of other tools; and many of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from edgelm_runtimes.machine import MachineFacts
from run_factory import PI, SERVER, make_run, replaced

from edgelm.bench import Comparison, EnergyRecord, GenerationRun, Run, TimelinePoint
from edgelm.bench.generation_run import (
    GENERATION_FORMAT,
    GENERATION_SCHEMA_VERSION,
    GenerationResults,
    GenerationSamples,
    GenerationSettings,
)
from edgelm.meters.record import EnergyWindow, not_measured
from edgelm.report import Result
from edgelm.report.foreign import parse_ai_hub, parse_benchmark_model, parse_llama_bench

__all__ = [
    "AI_HUB",
    "BENCHMARK_MODEL",
    "LLAMA_BENCH",
    "energy_of",
    "every_kind",
    "make_generation_run",
    "many",
    "over_time",
    "turns",
]

# As llama-bench writes it (tools/llama-bench/README.md of llama.cpp), with the numbers changed.
LLAMA_BENCH = """[
  {
    "build_commit": "8cf427ff",
    "build_number": 5163,
    "cpu_info": "4x Arm Cortex-A76",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "models/qwen2.5-0.5b-instruct-q4_0.gguf",
    "model_type": "qwen2 1B Q4_0",
    "model_size": 352151552,
    "model_n_params": 494032768,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 4,
    "cpu_mask": "0x0",
    "cpu_strict": false,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": 99,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": false,
    "flash_attn": false,
    "tensor_split": "0.00",
    "use_mmap": true,
    "embeddings": false,
    "n_prompt": 512,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "2025-04-24T11:58:50Z",
    "avg_ns": 4096000000,
    "stddev_ns": 1453752,
    "avg_ts": 125.000,
    "stddev_ts": 0.340520,
    "samples_ns": [ 4096000000, 4097000000, 4095000000 ],
    "samples_ts": [ 125.0, 124.97, 125.03 ]
  },
  {
    "build_commit": "8cf427ff",
    "build_number": 5163,
    "cpu_info": "4x Arm Cortex-A76",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "models/qwen2.5-0.5b-instruct-q4_0.gguf",
    "model_type": "qwen2 1B Q4_0",
    "model_size": 352151552,
    "model_n_params": 494032768,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 4,
    "cpu_mask": "0x0",
    "cpu_strict": false,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": 99,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": false,
    "flash_attn": false,
    "tensor_split": "0.00",
    "use_mmap": true,
    "embeddings": false,
    "n_prompt": 0,
    "n_gen": 128,
    "n_depth": 0,
    "test_time": "2025-04-24T11:58:51Z",
    "avg_ns": 6400000000,
    "stddev_ns": 9449585,
    "avg_ts": 20.000,
    "stddev_ts": 0.041811,
    "samples_ns": [ 6400000000, 6390000000, 6410000000 ],
    "samples_ts": [ 20.0, 20.03, 19.97 ]
  }
]
"""

# As benchmark_model logs it since 2024, with its table of operators left out.
BENCHMARK_MODEL = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/mobilebert_int8.tflite]
INFO: Signature to run: []
INFO: #threads used for CPU inference: [4]
INFO: Loaded model /data/local/tmp/mobilebert_int8.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 780 out of 802 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 5 partitions for the whole graph.
INFO: The input model file size (MB): 26.4116
INFO: Initialized session in 33.37ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115
INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982 p5=54801 median=56201 p95=58020
INFO: Inference timings in us: Init: 33370, First inference: 81913, Warmup (avg): 58984.7, Inference (avg): 56265.8
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=20.5 overall=63.25
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.25
"""  # noqa: E501 - as it is written

# As qai_hub_models/models/*/perf.yaml is written, shortened.
AI_HUB = """supported_devices:
- Samsung Galaxy S24
supported_chipsets:
- qualcomm-snapdragon-8gen3
precisions:
  float:
    components:
      Albert-Base-V2-Hf:
        universal_assets:
          tflite:
            model_id: mn4ylxrrn
            tool_versions:
              qairt: 2.41.0.251128145156_191518
              tflite: 2.17.0
        performance_metrics:
          Samsung Galaxy S24:
            tflite:
              job_id: jgkyxooyp
              job_status: Passed
              inference_time_milliseconds: 17.256
              estimated_peak_memory_range_mb:
                min: 0
                max: 339
              primary_compute_unit: NPU
              layer_counts:
                total: 550
                npu: 550
              tool_versions:
                qairt: 2.41.0.251128145156_191518
                tflite: 2.17.0
            onnx:
              job_id: jpevm8l75
              job_status: Failed
  w4a16:
    components:
      ALLaM-7B:
        performance_metrics:
          Snapdragon X Elite CRD:
            qnn_context_binary:
              time_to_first_token_range_milliseconds:
                min: 238.545
                max: 1399.168
              tokens_per_second: 9.5
"""


def energy_of(joules: float, *, scope: Any = "board", inferences: int = 400, reliable: bool = True) -> EnergyRecord:
    """Return a measured energy of an answer, a quarter of which the device draws at rest."""
    window = EnergyWindow(
        duration_s=20.0,
        gross_j=joules * inferences * 4 / 3,
        net_j=joules * inferences,
        idle_w=2.7,
        uncertainty_j=joules * inferences * 0.05,
        standard_j=joules * inferences * 0.01,
        readings=200,
        reliable=reliable,
        reason=None if reliable else "the window is shorter than ten readings",
    )
    return dataclasses.replace(
        not_measured("x"),
        method="measured",
        scope=scope,
        sensor="ina226",
        rate_hz=10.0,
        inferences=inferences,
        gross_j=window.gross_j,
        net_j=window.net_j,
        idle_w=2.7,
        per_inference_j=joules,
        uncertainty_j=joules * 0.05,
        standard_j=joules * 0.01,
        windows=(window,),
        notes=() if reliable else ("not to be relied on: the window is shorter than ten readings",),
    )


def over_time(run: Run, *, seconds: float = 60.0, points: int = 40) -> Run:
    """Return a run that grows warm and slow."""
    timeline = tuple(
        TimelinePoint(
            at_s=seconds * index / (points - 1),
            p50_s=run.results.p50_s * (1 + 0.2 * index / points),
            tokens_per_s=None,
            clock_hz=2.4e9 - 4e8 * (index > points * 0.7),
            temperature_c=48 + 34 * (1 - math.exp(-4 * index / points)),
            limits=("soft_temperature_limit",) if index > points * 0.7 else (),
            others_cores=0.02,
            power_w=None,
        )
        for index in range(points)
    )
    return dataclasses.replace(run, timeline=timeline)


def turns(runs: Sequence[Run]) -> list[Run]:
    """Return runs as if they were measured in turns of one session, each compared with the ones before it."""
    done: list[Run] = []
    for run in runs:
        comparisons = []
        for other in done:
            ratio = run.results.p50_s / other.results.p50_s
            verdict: Any = "slower" if ratio > 1.02 else "faster" if ratio < 0.98 else "no difference"
            comparisons.append(
                Comparison(
                    with_id=other.id,
                    with_name=other.bundle.name,
                    quantity="latency",
                    ratio=ratio,
                    low=ratio * 0.99,
                    high=ratio * 1.012,
                    confidence=0.99,
                    blocks=20,
                    margin=0.01,
                    verdict=verdict,
                    caveats=("different numbers of threads: 4 and 1",)
                    if other.runtime.threads != run.runtime.threads
                    else (),
                )
            )
        done.append(dataclasses.replace(run, session="0" * 16, comparisons=tuple(comparisons)))
    return done


def make_generation_run(
    *,
    name: str = "stories",
    recipe: str = "dynamic_wi8_afp32",
    runtime: str = "litert",
    depth: int = 0,
    tokens_per_s: float = 40.0,
    machine: MachineFacts = PI,
    seed: int = 0,
) -> GenerationRun:
    """Return a run of a language model whose tokens a seed draws."""
    base = make_run(
        name=name, recipe=recipe, runtime=runtime, machine=machine, accuracy=None, seed=seed, size_bytes=40_000_000
    )
    generator = np.random.default_rng(seed + depth)
    speed = tokens_per_s / (1 + depth / 4096)
    decode = tuple(tuple(float(value) for value in generator.lognormal(0, 0.05, 63) / speed) for _ in range(5))
    prefill = tuple(float(value) for value in 128 / (speed * 8) * generator.lognormal(0, 0.02, 5))
    every = sorted(token for tokens in decode for token in tokens)
    return GenerationRun(
        format=GENERATION_FORMAT,
        schema_version=GENERATION_SCHEMA_VERSION,
        id=f"{generator.integers(2**62):016x}",
        session=base.session,
        started=base.started,
        evidence=base.evidence,
        evidence_reason=base.evidence_reason,
        stopped=None,
        bundle=dataclasses.replace(base.bundle, task="generate", family="llama"),
        runtime=base.runtime,
        machine=machine,
        profile=base.profile,
        before=base.before,
        after=base.after,
        settings=GenerationSettings(
            mode="standard",
            threads=None,
            prefill_tokens=128,
            decode_tokens=64,
            depth=depth,
            repetitions=5,
            alternated_with=3,
            order_seed=seed,
            resumed=0,
        ),
        results=GenerationResults(
            ttft_s=sorted(prefill)[2],
            prefill_tokens_per_s=128 / sorted(prefill)[2],
            decode_tokens_per_s=speed,
            inter_token_p50_s=every[len(every) // 2],
            inter_token_p90_s=every[int(len(every) * 0.9)],
            inter_token_p99_s=every[int(len(every) * 0.99)],
            load_s=0.8,
            baseline_memory_bytes=40_000_000,
            peak_memory_bytes=160_000_000,
        ),
        energy=not_measured("no sensor"),
        modelled_energy=None,
        background=None,
        timeline=(),
        sustained=None,
        comparisons=(),
        packages=base.packages,
        samples=GenerationSamples(
            prefill_s=prefill, decode_s=decode, block=tuple(range(5)), at_s=tuple(2.0 * n for n in range(5))
        ),
    )


def every_kind() -> list[Result]:
    """Return runs of every kind that a report may show, on four machines and more."""
    measured = turns(
        [
            over_time(
                dataclasses.replace(
                    make_run(
                        name=name,
                        runtime=runtime,
                        recipe=recipe,
                        median_s=median,
                        accuracy=accuracy,
                        size_bytes=size,
                        seed=seed,
                    ),
                    energy=energy_of(median * 3.1),
                )
            )
            for seed, (name, runtime, recipe, median, accuracy, size) in enumerate(
                [
                    ("intents-int8", "litert", "dynamic_wi8_afp32", 0.0040, 0.912, 5_600_000),
                    ("intents-int8", "onnx", "dynamic_wi8_afp32", 0.0048, 0.911, 5_900_000),
                    ("intents-fp32", "litert", "float32", 0.0110, 0.915, 21_000_000),
                    ("intents-fp32", "onnx", "float32", 0.0125, 0.915, 21_300_000),
                    ("intents-4bit", "litert", "weight_wi4_afp32", 0.0060, 0.871, 3_100_000),
                ]
            )
        ]
    )
    apart = dataclasses.replace(
        make_run(name="intents-tiny", median_s=0.0011, accuracy=0.842, size_bytes=900_000, seed=9)
    )
    emulated = make_run(
        name="intents-int8", machine=dataclasses.replace(PI, emulated_on="x86_64"), match=False, seed=10
    )
    elsewhere = [
        make_run(name=name, machine=SERVER, match=False, median_s=median, seed=11)
        for name, median in (("intents-int8", 0.0019), ("intents-fp32", 0.0041))
    ]
    writing = [
        make_generation_run(runtime=runtime, depth=depth, tokens_per_s=speed, seed=20)
        for runtime, speed in (("litert", 42.0), ("onnx", 36.0))
        for depth in (0, 512, 2048)
    ]
    foreign = [
        *parse_llama_bench(LLAMA_BENCH),
        parse_benchmark_model(BENCHMARK_MODEL, device="pixel-8"),
        *parse_ai_hub(AI_HUB, model="albert"),
    ]
    return [*measured, apart, emulated, *elsewhere, *writing, *foreign]


def many(count: int) -> list[Run]:
    """Return so many different runs of two machines, light enough to make: of 60 queries each."""
    generator = np.random.default_rng(7)
    recipes = ("float32", "dynamic_wi8_afp32", "weight_wi4_afp32", "static_wi8_ai8")
    runs = []
    for index in range(count):
        runtime = ("litert", "onnx")[index % 2]
        run = make_run(
            name=f"model-{index // 8:03d}",
            recipe=recipes[index // 2 % 4],
            runtime=runtime,
            median_s=float(0.002 * generator.lognormal(0, 0.9)),
            accuracy=float(min(0.99, 0.95 - 0.1 * generator.random())),
            size_bytes=int(generator.integers(1, 80)) * 1_000_000,
            machine=(PI, SERVER)[index % 5 == 4],
            match=index % 5 != 4,
            queries=120,
            seed=index,
        )
        runs.append(replaced(run, "bundle", name=f"model-{index // 8:03d}"))
    return runs
