"""The HTML page: one file that loads nothing, as its content security policy declares."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from edgelm.bench import Bucket, Conditions, Run
from edgelm.bench.facts import installed_versions
from edgelm.errors import InputError
from edgelm.report import numbers
from edgelm.report.rows import group_runs, warnings_of
from edgelm.report.verdict import RULES
from edgelm.report.view import view

__all__ = ["render_html"]

_MOST_BUCKETS = 8


def render_html(runs: Sequence[Run]) -> str:
    """Return a page on the runs, for one who decides which of them to ship.

    Runs are grouped by machine, for only those of one machine can be compared.

    Raises:
        InputError: There is no run.
    """
    if not runs:
        raise InputError("There is no run to report on. Make one with: edgelm benchmark BUNDLE -o RUN.json")
    style, script = _asset("page.css"), _asset("page.js")
    views = [view(group) for group in group_runs(runs)]
    days = sorted({run.started[:10] for run in runs})
    names = list(dict.fromkeys(run.bundle.name for run in runs))
    return _template().render(
        title=f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} · edgelm benchmark",
        views=views,
        count=len(runs),
        dates=days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
        rules=RULES,
        version=installed_versions().get("edgelm", "of a checkout"),
        style=Markup(style),  # noqa: S704 - our own file
        style_hash=_hash(style),
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=_hash(script),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)
    environment.filters |= {
        "buckets": _buckets,
        "digits": lambda value: numbers.DASH if value is None else numbers.digits(value),
        "latency": numbers.latency,
        "ms": numbers.milliseconds,
        "pairs": _pairs,
        "percent": numbers.percent,
        "size": numbers.size,
        "temperatures": _temperatures,
        "warnings": warnings_of,
    }
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return files("edgelm.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pairs(table: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items()) or numbers.DASH


def _buckets(run: Run) -> list[Bucket]:
    """Return the sequence lengths that ran most, in rising order: a model that takes any length has hundreds."""
    most = sorted(run.results.buckets, key=lambda bucket: -bucket.queries)[:_MOST_BUCKETS]
    return sorted(most, key=lambda bucket: bucket.sequence_length)


def _temperatures(run: Run) -> str:
    before, after = (_hottest(state) for state in (run.before, run.after))
    return "no sensor" if before is None or after is None else f"{before:.0f} °C before, {after:.0f} °C after"


def _hottest(state: Conditions) -> float | None:
    return max((zone.temperature_c for zone in state.thermal_zones), default=None)
