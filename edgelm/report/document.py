"""The report as JSON, for programs: every figure by name in SI units, or why it is not there.

::

    {"format": "edgelm-report", "schema_version": 1,
     "machines": [{"title": …, "facts": […], "statements": […],
                   "sections": [{"kind": "answers", "choice": RUN_ID, "headline": …, "reasons": […], "front": [RUN_ID…],
                                 "comparisons": [{"run": RUN_ID, "with": RUN_ID, "ratio": …, "low": …, "high": …,
                                                  "verdict": …, "caveats": […]}]}],
                   "runs": [{"id": …, "number": …, "model": …, "recipe": …, "runtime": …, "threads": …, "depth": …,
                             "evidence": …, "source": …, "placement": {…}, "warnings": […],
                             "figures": {NAME: NUMBER}, "not_measured": {NAME: REASON},
                             "modelled_energy_j": …}]}]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgelm.errors import InputError
from edgelm.report.cautions import warnings_of
from edgelm.report.figures import NotMeasured, Result
from edgelm.report.foreign import ForeignRun
from edgelm.report.rows import Row, group_runs
from edgelm.report.view import GroupView, Section, view

__all__ = ["REPORT_FORMAT", "REPORT_SCHEMA_VERSION", "render_json", "report_values"]

REPORT_FORMAT = "edgelm-report"
REPORT_SCHEMA_VERSION = 1


def render_json(results: Sequence[Result], *, battery_wh: float | None = None) -> str:
    """Return the report as indented JSON with a line end.

    Raises:
        InputError: There is no run.
    """
    values = report_values(results, battery_wh=battery_wh)
    return json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def report_values(results: Sequence[Result], *, battery_wh: float | None = None) -> dict[str, Any]:
    """Return the report as values ready for JSON.

    Args:
        results: Runs of any kind, other tools' included.
        battery_wh: Of every device here; None leaves it to the devices' profiles.

    Raises:
        InputError: There is no run.
    """
    if not results:
        raise InputError("There is no run to report on. Make one with: edgelm benchmark BUNDLE -o RUN.json")
    views = [view(group) for group in group_runs(results, battery_wh=battery_wh)]
    return {
        "format": REPORT_FORMAT,
        "schema_version": REPORT_SCHEMA_VERSION,
        "machines": [_machine(each) for each in views],
    }


def _machine(each: GroupView) -> dict[str, Any]:
    return {
        "title": each.group.title,
        "facts": list(each.group.facts),
        "statements": list(each.group.statements),
        "sections": [_section(section) for section in each.sections],
        "runs": [_run(row) for row in each.group.rows],
    }


def _section(section: Section) -> dict[str, Any]:
    front = [row.result.id for row, _ in section.table.lines if row.number in section.front.numbers]
    return {
        "kind": section.kind,
        "choice": None if section.choice is None else section.choice.result.id,
        "headline": section.headline,
        "reasons": list(section.reasons),
        "front": front,
        "front_objectives": list(section.front.objectives),
        "comparisons": [
            {
                "run": each.row.result.id,
                "with": None if section.reference is None else section.reference.result.id,
                "ratio": each.ratio,
                "low": each.low,
                "high": each.high,
                "verdict": each.verdict,
                "caveats": list(each.caveats),
            }
            for each in section.comparisons
        ],
    }


def _run(row: Row) -> dict[str, Any]:
    result = row.result
    modelled = None if isinstance(result, ForeignRun) else result.modelled_energy
    return {
        "id": result.id,
        "number": row.number,
        "model": row.model,
        "recipe": row.recipe,
        "runtime": row.runtime,
        "threads": row.threads,
        "depth": row.depth,
        "started": result.started,
        "evidence": row.evidence,
        "source": row.source or "edgelm",
        "placement": dict(row.placement),
        "energy_scope": row.energy_scope,
        "warnings": list(warnings_of(result)),
        "figures": {name: value for name, value in row.figures.items() if not isinstance(value, NotMeasured)},
        "not_measured": {name: value.reason for name, value in row.figures.items() if isinstance(value, NotMeasured)},
        "modelled_energy_j": None if modelled is None else modelled.per_inference_j,
    }
