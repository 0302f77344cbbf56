"""Runs for tests of the log and the report, made from latencies that a seed draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from edgelm_runtimes.machine import FrequencyPolicy, MachineFacts, ThermalZone, Throttling
from edgelm_runtimes.program import ProgramFacts

from edgelm.bench import (
    FORMAT,
    SCHEMA_VERSION,
    BundleFacts,
    Conditions,
    ProfileFacts,
    Run,
    Samples,
    Settings,
)
from edgelm.bench.protocol import Loaded
from edgelm.bench.summary import summarise
from edgelm.bundle import Accuracy, Parity
from edgelm.meters.record import not_measured

__all__ = ["PI", "SERVER", "make_run", "replaced"]

PI = MachineFacts(
    device_model="Raspberry Pi 5 Model B Rev 1.0",
    cpu_model="4x Arm Cortex-A76",
    architecture="aarch64",
    logical_cores=4,
    usable_cores=(0, 1, 2, 3),
    isa=("neon", "fp16", "dotprod"),
    memory_total_bytes=8_459_272_192,
    kernel="6.12.25+rpt-rpi-2712",
    os_name="Debian GNU/Linux 12 (bookworm)",
    python_version="3.11.2",
    frequency_policies=(
        FrequencyPolicy(
            cpus=(0, 1, 2, 3),
            governor="ondemand",
            current_hz=1_500_000_000,
            max_hz=2_400_000_000,
            hardware_max_hz=2_400_000_000,
        ),
    ),
    load_average_1min=0.12,
    thermal_zones=(ThermalZone(name="cpu-thermal", temperature_c=48.6),),
    throttling=Throttling(now=(), occurred=()),
    container=None,
    virtual_machine=None,
    emulated_on=None,
)

SERVER = dataclasses.replace(
    PI,
    device_model=None,
    cpu_model="AMD EPYC 9R14",
    architecture="x86_64",
    kernel="6.1.0-28-amd64",
    logical_cores=2,
    usable_cores=(0, 1),
    isa=("avx2", "avx512f", "avx512vnni"),
    frequency_policies=(),
    load_average_1min=1.7,
    thermal_zones=(),
    throttling=None,
    virtual_machine="Amazon EC2 m7a.large",
)


def make_run(
    *,
    name: str = "intents",
    recipe: str = "dynamic_wi8_afp32",
    runtime: str = "litert",
    threads: int = 4,
    median_s: float = 0.004,
    queries: int = 400,
    size_bytes: int = 5_612_345,
    accuracy: float | None = 0.912,
    deadline_s: float | None = None,
    machine: MachineFacts = PI,
    match: bool = True,
    seed: int = 0,
    **settings: Any,
) -> Run:
    """Return a run whose latencies have two humps, one for each sequence length, and a few late ones."""
    generator = np.random.default_rng(seed)
    length = generator.choice([16, 32], size=queries, p=[0.6, 0.4])
    latency = median_s * np.where(length == 16, 0.85, 1.25) * generator.lognormal(0, 0.04, queries)
    latency[generator.random(queries) < 0.01] *= 2.5
    tokenize = np.minimum(generator.lognormal(-8.6, 0.1, queries), latency * 0.2)
    samples = Samples(
        latency_s=tuple(round(float(value), 9) for value in latency),
        tokenize_s=tuple(round(float(value), 9) for value in tokenize),
        run_s=tuple(round(float(value), 9) for value in (latency - tokenize) * 0.97),
        tokens=tuple(int(value) - 3 for value in length),
        sequence_length=tuple(int(value) for value in length),
        block=tuple(index // 20 for index in range(queries)),
    )
    facts = ProgramFacts(
        runtime=runtime,
        runtime_version={"litert": "2.3.0", "onnx": "1.32.0"}.get(runtime, "1"),
        device="cpu",
        threads=threads,
        delegate={"litert": "XNNPACK", "onnx": "CPUExecutionProvider"}.get(runtime, "none"),
    )
    loaded = Loaded(
        facts=facts,
        artifact_file="model.tflite",
        input_count=40,
        load_s=0.183,
        first_inference_s=median_s * 3.1,
        baseline_memory_bytes=40_517_632,
        overhead_s=1.2e-6,
    )
    kept = {
        "threads": None,
        "queries": None,
        "seconds": 3.0,
        "inputs": "golden",
        "input_count": 40,
        "truncated_inputs": 0,
        "warm_up_queries": 80,
        "warm_up_settled": True,
        "alternated_with": 3,
        "mode": "standard",
        "order_seed": seed,
        "resumed": 0,
    }
    return Run(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        id=f"{generator.integers(2**62):016x}",
        session=f"{seed:016x}",
        started="2026-03-14T09:26:53+00:00",
        evidence="executed" if machine.emulated_on else "measured",
        evidence_reason="for a test",
        stopped=None,
        bundle=BundleFacts(
            name=name,
            manifest_sha256=f"{seed:064x}",
            task="classify",
            recipe=recipe,
            format="onnx" if runtime == "onnx" else "tflite",
            size_bytes=size_bytes,
            bundle_size_bytes=size_bytes * 2 + 700_000,
            parameters=5_300_000,
            path="recognised",
            family="bert",
            architecture={"layers": 4, "width": 256, "heads": 4, "vocabulary": 8000},
            parity=Parity(200, "real", 0.031, 8.4, 0.12, 0.995, 0.98, "dynamic int8: half a step of each matmul"),
            accuracy=None if accuracy is None else Accuracy("test.csv", 3080, 0.915, accuracy),
        ),
        runtime=facts,
        machine=machine,
        profile=ProfileFacts(
            name="raspberry-pi-5",
            title="Raspberry Pi 5",
            match=match,
            detected="raspberry-pi-5" if match else "x86-64",
            statement="Measured on Raspberry Pi 5."
            if match
            else f"Measured on {machine.cpu_model} ({machine.architecture}), not on Raspberry Pi 5.",
        ),
        before=Conditions.of(machine),
        after=Conditions.of(machine),
        settings=Settings(**{"deadline_s": deadline_s, **kept, **settings}),
        results=summarise(samples, loaded=loaded, peak_memory_bytes=41_000_000 + 3 * size_bytes, deadline_s=deadline_s),
        energy=not_measured("no sensor"),
        modelled_energy=None,
        background=None,
        timeline=(),
        sustained=None,
        realtime=None,
        mlperf=None,
        comparisons=(),
        packages={"edgelm": "0.1.0", "ai-edge-litert": "2.3.0", "numpy": "2.4.6", "tokenizers": "0.23.0"},
        samples=samples,
    )


def replaced(run: Run, part: str, **changes: Any) -> Run:
    """Return a run with fields of one of its parts changed."""
    changed: Any = {part: dataclasses.replace(getattr(run, part), **changes)}
    return dataclasses.replace(run, **changed)
