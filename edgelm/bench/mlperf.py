"""The results of MLPerf's SingleStream scenario, under the names of its load generator.

The rules: one query after the other, at least 1024 of them and 60 s; the 90th percentile is the result. The names are those
of ``mlperf_log_summary.txt`` as LoadGen writes it (loadgen/results.cc in mlcommons/inference) and of its detail log. Of
energy, the median of five windows counts, as in MLPerf Tiny. LoadGen's own early-stopping estimate is not computed, and no
submission is made of this: it is the same measure, not a certified one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from edgelm.bench.modes import MLPERF_QUERIES, MLPERF_S
from edgelm.bench.run import Samples
from edgelm.bench.statistics import percentile

__all__ = ["ENERGY_WINDOWS", "mlperf_fields"]

ENERGY_WINDOWS = 5

_PERCENTILES = (("50.00", 500), ("90.00", 900), ("95.00", 950), ("97.00", 970), ("99.00", 990), ("99.90", 999))


def mlperf_fields(
    samples: Samples, *, name: str, seconds: float, energy_j: Sequence[float] = ()
) -> dict[str, str | int | float | bool]:
    """Return the fields of a SingleStream run.

    Args:
        samples: Every query, at least one.
        name: Of what was measured.
        seconds: Of all queries together.
        energy_j: For one inference, of each window; () where it was not measured.
    """
    ordered = sorted(samples.latency_s)
    enough_queries, enough_time = len(ordered) >= MLPERF_QUERIES, seconds >= MLPERF_S
    fields: dict[str, str | int | float | bool] = {
        "SUT name": name,
        "scenario": "SingleStream",
        "mode": "PerformanceOnly",
        "90th percentile latency (ns)": _ns(percentile(ordered, 900)),
        "result_validity": "VALID" if enough_queries and enough_time else "INVALID",
        "Min duration satisfied": enough_time,
        "Min queries satisfied": enough_queries,
        "min_duration": round(MLPERF_S * 1e3),
        "min_query_count": MLPERF_QUERIES,
        "query_count": len(ordered),
        "duration (ms)": round(seconds * 1e3),
        "QPS w/ loadgen overhead": len(ordered) / _span_s(samples, seconds),
        "QPS w/o loadgen overhead": 1 / fmean(ordered),
        "Min latency (ns)": _ns(ordered[0]),
        "Max latency (ns)": _ns(ordered[-1]),
        "Mean latency (ns)": _ns(fmean(ordered)),
    }
    for words, per_mille in _PERCENTILES:
        fields[f"{words} percentile latency (ns)"] = _ns(percentile(ordered, per_mille))
    if energy_j:
        fields["median energy per inference (J)"] = median(energy_j)
        fields["energy_windows"] = len(energy_j)
    return fields


def _span_s(samples: Samples, seconds: float) -> float:
    """Return the time from the first query to the last answer, the benchmark's own included."""
    at_s = samples.at_s
    return seconds if at_s is None else at_s[-1] + samples.latency_s[-1] - at_s[0]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
