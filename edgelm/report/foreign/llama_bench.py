"""llama-bench's results: ``llama-bench -o json``, or ``-o jsonl`` with an object a line.

The fields are those of tools/llama-bench/README.md and llama-bench.cpp in https://github.com/ggml-org/llama.cpp (as of 2025):
a row is a test, either of a prompt (``n_prompt`` tokens) or of an answer (``n_gen``), at a depth of the cache (``n_depth``).
``avg_ts`` is the mean of the tokens a second over the repetitions; times are nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from edgelm.errors import InputError
from edgelm.report.foreign.run import ForeignRun, foreign_id

__all__ = ["is_llama_bench", "parse_llama_bench"]

_NEEDED = ("model_filename", "n_prompt", "n_gen", "avg_ts")
_MIXED = "a prompt and an answer were timed together, which tells neither's speed"


def is_llama_bench(text: str) -> bool:
    """Return whether a text looks like llama-bench's JSON or JSONL."""
    return text.lstrip()[:1] in ("[", "{") and '"model_filename"' in text and '"n_gen"' in text


def parse_llama_bench(text: str) -> list[ForeignRun]:
    """Return a run for each model, setting and depth: the prompt's row and the answer's belong together.

    Raises:
        InputError: It is not JSON, or a row lacks a field.
    """
    pairs: dict[tuple[object, ...], dict[str, Mapping[str, Any]]] = {}
    for row in _rows(text):
        missing = [name for name in _NEEDED if name not in row]
        if missing:
            raise InputError(f"A row of llama-bench lacks {', '.join(missing)}: write it with -o json.")
        kind = ("mixed" if row["n_gen"] else "prompt") if row["n_prompt"] else "answer"
        pair = pairs.setdefault(_setting(row), {})
        if kind in pair:  # the same setting with another number of tokens stands on its own
            pair = pairs.setdefault((*_setting(row), row["n_prompt"], row["n_gen"]), {})
        pair[kind] = row
    return [_run(pair) for pair in pairs.values()]


def _rows(text: str) -> list[Mapping[str, Any]]:
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"It looks like llama-bench's output, and is not valid JSON ({error}).") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError("It looks like llama-bench's output, and a row of it is no object.")
    return list(rows)


def _setting(row: Mapping[str, Any]) -> tuple[object, ...]:
    names = (
        "build_commit", "cpu_info", "gpu_info", "backends", "model_filename", "n_threads", "n_gpu_layers",
        "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "n_depth",
    )  # fmt: skip
    return tuple(str(row.get(name)) for name in names)


def _run(pair: Mapping[str, Mapping[str, Any]]) -> ForeignRun:
    row = next(iter(pair.values()))
    figures: dict[str, float] = {"depth": float(row.get("n_depth") or 0)}
    if "prompt" in pair:
        figures["prefill_tokens_per_s"] = float(pair["prompt"]["avg_ts"])
    if "answer" in pair:
        answer = pair["answer"]
        figures["decode_tokens_per_s"] = float(answer["avg_ts"])
        if answer.get("samples_ns"):
            # A token's mean within each repetition, and the median of these: no percentile of single tokens.
            figures["reported_latency"] = median(answer["samples_ns"]) / answer["n_gen"] / 1e9
    if row.get("model_size"):
        figures["size"] = float(row["model_size"])
    if row.get("model_n_params"):
        figures["parameters"] = float(row["model_n_params"])
    backends = str(row.get("backends") or "CPU")
    on_cpu = backends in ("CPU", "BLAS") or not row.get("gpu_info") or row.get("n_gpu_layers") == 0
    notes = ["the mean of the repetitions, as llama-bench states it"] + ([_MIXED] if "mixed" in pair else [])
    build = f" {row['build_commit']} ({row.get('build_number')})" if row.get("build_commit") else ""
    return ForeignRun(
        id=foreign_id("llama-bench", *_setting(row), row.get("test_time"), *pair),
        source=f"llama-bench{build}",
        device=str((row.get("cpu_info") if on_cpu else row["gpu_info"]) or "a machine that llama-bench does not name"),
        model=PurePosixPath(str(row["model_filename"]).replace("\\", "/")).stem,
        recipe=str(row.get("model_type") or ""),
        runtime=f"llama.cpp {backends}",
        threads=row.get("n_threads"),
        generates=True,
        started=row.get("test_time"),
        depth=int(row.get("n_depth") or 0),
        figures=figures,
        placement={},
        notes=tuple(notes),
    )
