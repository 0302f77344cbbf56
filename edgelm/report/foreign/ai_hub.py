"""Qualcomm AI Hub's ``perf.yaml``: what its hosted devices measured of its own models.

The file's structure is that of ``QAIHMModelPerf`` in qai_hub_models/configs/perf_yaml.py, https://github.com/quic/ai-hub-models
(2025): precisions, components, devices, runtimes. Times are milliseconds, memory is MiB: their ``from_bytes`` divides by 2**20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgelm.errors import InputError, MissingPackageError
from edgelm.report.foreign.run import ForeignRun, foreign_id

__all__ = ["parse_ai_hub"]

_SOURCE = "Qualcomm AI Hub"
_ESTIMATED = "AI Hub's estimated inference time of the compiled model alone, no percentile"
_FIRST_TOKEN = "the time to the first token is the shortest that AI Hub states"  # noqa: S105 - a token of text


def parse_ai_hub(text: str, *, model: str) -> list[ForeignRun]:
    """Return a run for each precision, component, device and runtime that AI Hub measured; failed jobs are left out.

    Args:
        text: Of ``perf.yaml``.
        model: To call it where the file names no component.

    Raises:
        InputError: It is not YAML, or of another structure, as that before 2025, or holds no measurement.
        MissingPackageError: PyYAML is not installed.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingPackageError("yaml", extra="report", what="reading perf.yaml") from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"It is not valid YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(data, Mapping) or not isinstance(data.get("precisions"), Mapping):
        raise InputError(
            "It is no perf.yaml of Qualcomm AI Hub, or one of before 2025: it has no 'precisions'. Take a newer release."
        )
    try:
        runs = list(_runs(data["precisions"], model))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The perf.yaml does not have AI Hub's structure ({error!r}): the file is damaged.") from error
    if not runs:
        raise InputError("The perf.yaml holds no measurement that succeeded.")
    return runs


def _runs(precisions: Mapping[str, Any], model: str) -> Iterator[ForeignRun]:
    for precision, parts in precisions.items():
        for component, details in (parts.get("components") or {}).items():
            for device, runtimes in (details.get("performance_metrics") or {}).items():
                for runtime, measured in runtimes.items():
                    figures = _figures(measured)
                    if figures:
                        yield _run(component or model, precision, device, runtime, measured, figures)


def _figures(measured: Mapping[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    if measured.get("inference_time_milliseconds") is not None:
        figures["reported_latency"] = float(measured["inference_time_milliseconds"]) / 1e3
    if measured.get("tokens_per_second") is not None:
        figures["decode_tokens_per_s"] = float(measured["tokens_per_second"])
    first = measured.get("time_to_first_token_range_milliseconds")
    if first:
        figures["ttft"] = float(first["min"]) / 1e3
    memory = measured.get("estimated_peak_memory_range_mb")
    if memory and memory["max"]:  # 0 is what it writes where it does not know
        figures["peak_memory"] = float(memory["max"]) * 2**20
    return figures


def _run(
    model: str, precision: str, device: str, runtime: str, measured: Mapping[str, Any], figures: Mapping[str, float]
) -> ForeignRun:
    generates = "decode_tokens_per_s" in figures
    layers = measured.get("layer_counts") or {}
    versions = measured.get("tool_versions") or {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = [_FIRST_TOKEN] if generates else [_ESTIMATED]
    if context := measured.get("context_length"):
        notes.append(f"with a context of {context} tokens")
    return ForeignRun(
        id=foreign_id(_SOURCE, model, precision, device, runtime, measured.get("job_id"), sorted(figures.items())),
        source=_SOURCE + (f", job {measured['job_id']}" if measured.get("job_id") else ""),
        device=device,
        model=str(model),
        recipe=str(precision),
        runtime=str(runtime),
        threads=None,
        generates=generates,
        started=None,
        depth=None,
        figures=figures,
        placement={unit: int(layers[unit]) for unit in ("npu", "gpu", "cpu") if layers.get(unit)},
        notes=tuple([*notes, told] if told else notes),
    )
