"""Runs in the formats of others: a table, llama-bench's rows, MLPerf's summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.bench.generation_run import GenerationRun
from edgelm.bench.log import AnyRun
from edgelm.bench.run import Run
from edgelm.errors import InputError, unknown_name

__all__ = ["COLUMNS", "FORMATS", "export", "row_of"]

FORMATS = ("csv", "json", "llama-bench", "mlperf")

COLUMNS: tuple[str, ...] = (
    "id", "session", "started", "kind", "bundle", "recipe", "format", "runtime", "runtime_version", "threads", "machine",
    "profile", "profile_match", "evidence", "mode", "stopped", "queries", "p50_s", "p90_s", "p99_s", "p999_s", "mean_s",
    "throughput_per_s", "depth", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "load_s", "first_inference_s",
    "peak_memory_bytes", "size_bytes", "overhead_s", "deadline_s", "deadline_hit_rate", "energy_method", "energy_scope",
    "per_inference_j", "uncertainty_j", "prefill_j_per_token", "decode_j_per_token", "others_cores_mean",
)  # fmt: skip
"""Of the table. A column that a run does not have is empty, never 0."""


def export(runs: Sequence[AnyRun], name: str) -> str:
    """Return runs in a format, with a line end.

    Args:
        runs: At least one.
        name: ``csv`` (one row a run, `COLUMNS`), ``json`` (the runs themselves, samples included),
            ``llama-bench`` (its JSON rows, of language models) or ``mlperf`` (its summary, of runs in that mode).

    Raises:
        InputError: There is no such format, or a run cannot be told in it.
    """
    if name == "csv":
        return _csv([row_of(run.to_dict()) for run in runs])
    if name == "json":
        return _json([run.to_dict() for run in runs])
    if name == "llama-bench":
        models = [run for run in runs if isinstance(run, GenerationRun)]
        if len(models) < len(runs):
            raise InputError("llama-bench's rows are of language models alone: leave the other runs out by naming ids.")
        return _json([row for run in models for row in run.llama_bench_rows()])
    if name == "mlperf":
        return "\n".join(_mlperf_summary(run) for run in runs)
    raise InputError(unknown_name("format", name, FORMATS))


def row_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's row of the table, from the values of its JSON; its samples are not needed."""
    settings, results, energy = values["settings"], values["results"], values["energy"]
    profile, background = values.get("profile") or {}, values.get("background") or {}
    machine = values["machine"]
    row = {
        **{name: values.get(name) for name in ("id", "session", "started", "evidence", "stopped")},
        "kind": values["format"].removeprefix("edgelm-"),
        "bundle": values["bundle"]["name"],
        **{name: values["bundle"][name] for name in ("recipe", "format", "size_bytes")},
        **{name: values["runtime"][name] for name in ("runtime", "runtime_version", "threads")},
        "machine": machine["device_model"] or machine["cpu_model"],
        "profile": profile.get("name"),
        "profile_match": profile.get("match"),
        "mode": settings.get("mode"),
        "depth": settings.get("depth"),
        "deadline_s": settings.get("deadline_s"),
        "energy_method": energy["method"],
        "energy_scope": energy["scope"],
        "others_cores_mean": background.get("others_cores_mean"),
        **{
            name: energy.get(name)
            for name in ("per_inference_j", "uncertainty_j", "prefill_j_per_token", "decode_j_per_token")
        },
    }
    return {name: row[name] if name in row else results.get(name) for name in COLUMNS}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _mlperf_summary(run: AnyRun) -> str:
    """Return a run's summary, a name and a value a line as LoadGen lays them out."""
    if not isinstance(run, Run) or run.mlperf is None:
        raise InputError(
            f"The run {run.id} was not measured as MLPerf asks. Measure it with: edgelm benchmark BUNDLE --mode mlperf"
        )
    width = max(map(len, run.mlperf))
    lines = [f"{name:<{width}} : {_told(value)}" for name, value in run.mlperf.items()]
    return "\n".join(["MLPerf Results Summary", *lines]) + "\n"


def _told(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
