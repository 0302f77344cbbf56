from __future__ import annotations

import json

from report_factory import every_kind
from run_factory import make_run

from edgelm.report import render_json, report_values
from edgelm.report.figures import FIELDS


def test_the_document_has_every_run_and_every_figure_once() -> None:
    results = every_kind()
    data = json.loads(render_json(results))
    assert data == report_values(results)
    runs = [run for machine in data["machines"] for run in machine["runs"]]
    assert sorted(run["id"] for run in runs) == sorted(result.id for result in results)
    assert [run["number"] for run in runs] == list(range(1, len(runs) + 1))
    for run in runs:
        assert {*run["figures"], *run["not_measured"]} == FIELDS.keys()
        assert not run["figures"].keys() & run["not_measured"].keys()
        assert run["evidence"] == "measured" or "p50" not in run["figures"]


def test_references_lead_to_runs() -> None:
    for machine in report_values(every_kind())["machines"]:
        ids = {run["id"] for run in machine["runs"]}
        for section in machine["sections"]:
            assert set(section["front"]) <= ids
            assert section["choice"] is None or section["choice"] in ids
            for comparison in section["comparisons"]:
                assert {comparison["run"], comparison["with"]} <= ids


def test_figures_are_those_of_the_run() -> None:
    run = make_run()
    (told,) = report_values([run])["machines"][0]["runs"]
    assert told["figures"]["p90"] == run.results.p90_s
    assert told["figures"]["size"] == run.bundle.size_bytes
    assert told["not_measured"]["energy"] == "no sensor"
