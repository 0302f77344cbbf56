"""The HTML page: one file that loads nothing, as its content security policy declares."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from edgelm.bench.facts import installed_versions
from edgelm.errors import InputError
from edgelm.report import numbers
from edgelm.report.figures import FIELDS, Result
from edgelm.report.foreign import ForeignRun
from edgelm.report.quantities import shown
from edgelm.report.rows import Row, group_runs
from edgelm.report.tables import placement_words
from edgelm.report.verdict import RULES
from edgelm.report.view import overview, view

__all__ = ["render_html"]

# More than these are folded away: printed or scrolled through, they would bury what matters.
_MOST_OPEN = 24
# Of more runs, what is folded away is parsed when it is opened: a thousand runs would make 300,000 elements at once.
_MOST_WHOLE = 100
# As in page.js, which shows the others when the reader asks.
_MOST_ROWS = 50


def render_html(results: Sequence[Result], *, battery_wh: float | None = None) -> str:
    """Return a page on the runs, for one who decides which of them to ship.

    Runs are grouped by machine, for only those of one machine can be compared.

    Args:
        results: Runs of any kind, other tools' included.
        battery_wh: Of every device here; None leaves it to the devices' profiles.

    Raises:
        InputError: There is no run.
    """
    if not results:
        raise InputError("There is no run to report on. Make one with: edgelm benchmark BUNDLE -o RUN.json")
    style, head, script = _asset("page.css"), _asset("head.js"), _asset("page.js")
    views = [view(group) for group in group_runs(results, battery_wh=battery_wh)]
    days = sorted({day for result in results if (day := (result.started or "")[:10])})
    names = list(dict.fromkeys(_name(result) for result in results))
    return _template().render(
        title=f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} · edgelm benchmark",
        views=views,
        overview=overview(views) if len(views) > 1 else (),
        count=len(results),
        dates="" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
        rules=RULES,
        most_open=_MOST_OPEN,
        most_rows=_MOST_ROWS,
        lazy=len(results) > _MOST_WHOLE,
        version=installed_versions().get("edgelm", "of a checkout"),
        style=Markup(style),  # noqa: S704 - our own file
        style_hash=_hash(style),
        head=Markup(head),  # noqa: S704 - our own file
        head_hash=_hash(head),
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=_hash(script),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.filters |= {"figure": _figure, "placement": placement_words, "several": _several}
    return environment.get_template("page.html.j2")


def _asset(name: str) -> str:
    return files("edgelm.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name(result: Result) -> str:
    return result.model if isinstance(result, ForeignRun) else result.bundle.name


def _figure(row: Row, name: str) -> str:
    value = row.value(name)
    return numbers.DASH if value is None else shown(value, FIELDS[name].dimension)


def _several(run_numbers: Sequence[int]) -> str:
    """Return a few of the numbers, as ``#1, #2 …``."""
    return ", ".join(f"#{number}" for number in run_numbers[:8]) + (" …" if len(run_numbers) > 8 else "")
