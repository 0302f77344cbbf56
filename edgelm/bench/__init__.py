"""The benchmark: how fast a bundle answers on this machine, and everything needed to judge that.

>>> runs = benchmark(["small.edgelm", "large.edgelm"], deadline_s=0.02)
>>> log.append(runs[0], "runs.jsonl")

A `Run` is the record of one bundle in one runtime; `edgelm.report` makes a page of several.
"""

from edgelm.bench import log
from edgelm.bench.context import BundleFacts, Conditions, ProfileFacts
from edgelm.bench.findings import (
    Background,
    Checkpoint,
    Comparison,
    RealTime,
    Spread,
    StoredSamples,
    Sustained,
    TimelinePoint,
)
from edgelm.bench.generation import benchmark_generation
from edgelm.bench.generation_run import GenerationRun
from edgelm.bench.measure import benchmark
from edgelm.bench.run import FORMAT, SCHEMA_VERSION, Bucket, Results, Run, Samples, Settings
from edgelm.meters.record import EnergyRecord, EnergyWindow

__all__ = [
    "FORMAT",
    "SCHEMA_VERSION",
    "Background",
    "Bucket",
    "BundleFacts",
    "Checkpoint",
    "Comparison",
    "Conditions",
    "EnergyRecord",
    "EnergyWindow",
    "GenerationRun",
    "ProfileFacts",
    "RealTime",
    "Results",
    "Run",
    "Samples",
    "Settings",
    "Spread",
    "StoredSamples",
    "Sustained",
    "TimelinePoint",
    "benchmark",
    "benchmark_generation",
    "log",
]
