"""The report: what runs say about which bundle to ship, as one HTML page or as Markdown.

>>> runs = edgelm.bench.log.read(["pi.jsonl"])
>>> write(runs, "report.html")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgelm.bench import Run
from edgelm.bench.output import write_text
from edgelm.errors import OutputError
from edgelm.report.html import render_html
from edgelm.report.markdown import render_markdown

__all__ = ["render_html", "render_markdown", "write"]

_WRITERS: dict[str, Callable[[Sequence[Run]], str]] = {
    ".html": render_html,
    ".htm": render_html,
    ".md": render_markdown,
}


def write(runs: Sequence[Run], path: Path | str, *, force: bool = False) -> None:
    """Write a report on the runs, in the form that the name's ending asks for: ``.html`` or ``.md``.

    Raises:
        InputError: There is no run.
        OutputError: The ending is another, the file exists and `force` is not given, or it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise OutputError(
            f"{path} ends neither in .html nor in .md, so what to write is not known. Choose one of them."
        )
    write_text(_WRITERS[path.suffix.lower()](runs), path, force=force)
