"""The output of LiteRT's ``benchmark_model``: what it logs, its table of operators included.

The lines are those of tensorflow/lite/tools/benchmark/benchmark_model.cc and benchmark_tflite_model.cc in
https://github.com/tensorflow/tensorflow (2.4 to 2.19) and of tflite/tools/benchmark in https://github.com/google-ai-edge/LiteRT.
On Android each line comes from logcat, with a prefix, which is skipped. Times are microseconds, memory is MiB. Newer versions
add ``p5``, ``median`` and ``p95``. The last line with ``count=`` is the measurement, the one before it the warm-up.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from edgelm.errors import InputError
from edgelm.report.foreign.run import ForeignRun, foreign_id

__all__ = ["is_benchmark_model", "parse_benchmark_model"]

_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
_SUMMARY = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_COUNT = re.compile(rf"count=([0-9]+)((?: [a-z0-9]+={_NUMBER})+)")
_PAIR = re.compile(rf"([a-z0-9]+)={_NUMBER}")
_GRAPH = re.compile(r"Graph: \[(.+?)\]")
_THREADS = re.compile(r"(?:Num threads|#threads used for CPU inference): \[([0-9]+)\]")
_SIZE = re.compile(rf"input model file size \(MB\): {_NUMBER}")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_DELEGATED = re.compile(r"Replacing ([0-9]+) out of ([0-9]+) node\(s\) with delegate \((\w+)\)")
_DELEGATES = {
    "TfLiteXNNPackDelegate": ("cpu, XNNPACK", "XNNPACK"),
    "TfLiteGpuDelegateV2": ("gpu", "GPU delegate"),
    "TfLiteNnapiDelegate": ("NNAPI", "NNAPI"),
    "EdgeTpuDelegate": ("edgetpu", "Edge TPU delegate"),
}
_WITHOUT_TOKENIZER = "the model alone on random input: without a tokenizer, and of one input's shape"


def is_benchmark_model(text: str) -> bool:
    """Return whether a text is the output of ``benchmark_model``."""
    return "Inference timings in us: Init:" in text


def parse_benchmark_model(text: str, *, device: str) -> ForeignRun:
    """Return the run that a log is of.

    Args:
        text: What ``benchmark_model`` wrote to its terminal, or logcat.
        device: Where it ran, which the tool does not say.

    Raises:
        InputError: It holds no summary, or several.
    """
    summaries = _SUMMARY.findall(text)
    if len(summaries) != 1:
        raise InputError(
            f"The log of benchmark_model holds {len(summaries)} lines with timings, and one is wanted: a file a run."
        )
    init, first, _, mean = (float(value) / 1e6 for value in summaries[0])
    figures = {"load": init, "first_inference": first, "mean": mean, **_spread(text)}
    if size := _SIZE.search(text):
        # The tool divides by 1e6, and memory by 2**20.
        figures["size"] = float(size[1]) * 1e6
    if peak := _PEAK.search(text):
        figures["peak_memory"] = float(peak[1]) * 2**20
    graph, threads = _GRAPH.search(text), _THREADS.search(text)
    placement, runtime = _placement(text)
    model = PurePosixPath(graph[1].replace("\\", "/")).stem if graph else "a model that the log does not name"
    return ForeignRun(
        id=foreign_id("benchmark_model", device, text),
        source="benchmark_model",
        device=device,
        model=model,
        recipe="",
        runtime=runtime,
        threads=int(threads[1]) if threads else None,
        generates=False,
        started=None,
        depth=None,
        figures=figures,
        placement=placement,
        notes=(_WITHOUT_TOKENIZER,),
    )


def _spread(text: str) -> dict[str, float]:
    lines = _COUNT.findall(text)
    if not lines:
        return {}
    count, rest = lines[-1][0], dict(_PAIR.findall(lines[-1][1]))
    names = {"min": "min", "max": "max", "median": "p50", "std": "jitter"}
    figures = {ours: float(rest[theirs]) / 1e6 for theirs, ours in names.items() if theirs in rest}
    return {"queries": float(count), **figures}


def _placement(text: str) -> tuple[dict[str, int], str]:
    placement: dict[str, int] = {}
    left, names = None, []
    for replaced, total, delegate in _DELEGATED.findall(text):
        where, name = _DELEGATES.get(delegate, (delegate, delegate))
        placement[where] = placement.get(where, 0) + int(replaced)
        names.append(name)
        left = (int(total) if left is None else left) - int(replaced)
    if left:
        placement["cpu"] = left
    return placement, " + ".join(["tflite", *dict.fromkeys(names)])
