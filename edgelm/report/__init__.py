"""The report: what runs say about which bundle to ship on which device, as an HTML page, as Markdown or as JSON.

>>> results = read_results(["pi.jsonl", "llama-bench.json"])
>>> write(results, "report.html")
>>> all(each.passed for each in check(results, parse("p90 < 20ms and accuracy > 85%")))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgelm.bench.output import write_text
from edgelm.errors import OutputError
from edgelm.report.check import Checked, check, parse
from edgelm.report.document import render_json, report_values
from edgelm.report.figures import Result
from edgelm.report.foreign import ForeignRun
from edgelm.report.html import render_html
from edgelm.report.markdown import render_markdown
from edgelm.report.sources import read_results

__all__ = [
    "Checked",
    "ForeignRun",
    "Result",
    "check",
    "check_output",
    "parse",
    "read_results",
    "render_html",
    "render_json",
    "render_markdown",
    "report_values",
    "write",
]


class _Render(Protocol):
    def __call__(self, results: Sequence[Result], *, battery_wh: float | None = None) -> str: ...


_WRITERS: dict[str, _Render] = {".html": render_html, ".htm": render_html, ".md": render_markdown, ".json": render_json}


def check_output(path: Path | str, *, force: bool = False) -> None:
    """Refuse a place that `write` would refuse, before any work is done.

    Raises:
        OutputError: The ending is not known, or the file exists and `force` is not given.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise OutputError(
            f"{path} ends neither in .html nor in .md nor in .json, so what to write is not known. Choose one of them."
        )
    if path.exists() and not force:
        raise OutputError(f"{path} exists already. Choose another name, or replace it with --force.")


def write(results: Sequence[Result], path: Path | str, *, battery_wh: float | None = None, force: bool = False) -> None:
    """Write a report on the runs, in the form that the name's ending asks for: ``.html``, ``.md`` or ``.json``.

    Args:
        results: Of `read_results`, or runs of `edgelm.bench`.
        path: Where; its folder must exist.
        battery_wh: Of every device here, in watt hours; None leaves it to the devices' profiles.
        force: Whether to replace a file that exists.

    Raises:
        InputError: There is no run.
        OutputError: The ending is another, the file exists and `force` is not given, or it cannot be written.
    """
    path = Path(path)
    check_output(path, force=force)
    write_text(_WRITERS[path.suffix.lower()](results, battery_wh=battery_wh), path, force=force)
