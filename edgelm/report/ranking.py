"""What each part of a model costs where it alone is compressed: a table with bars for a terminal, and a picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape

from edgelm.bundle import GateRecord

__all__ = ["kept_parts", "ranking_rows", "ranking_svg"]

_BAR = 32  # characters of the longest bar
_ROW, _LEFT, _RIGHT, _TOP = 22, 250, 470, 44  # pixels
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1b1f24 } .note { fill: #57606a }
.bar { fill: #0969da } .kept { fill: #bc4c00 } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9da7b3 } .bar { fill: #58a6ff } .kept { fill: #f0883e } .page { fill: #0d1117 }
}"""


def kept_parts(gate: GateRecord) -> frozenset[str]:
    """Return the names of the parts that the written artifact keeps in more bits."""
    return frozenset(entry.rsplit(" (", 1)[0] for entry in gate.steps[-1].kept)


def ranking_rows(ranking: Mapping[str, float], kept: Collection[str]) -> list[tuple[str, ...]]:
    """Return a row for each part: its name, its cost, and a bar; ``*`` marks those that are kept in more bits."""
    most = max([*ranking.values(), 0.0]) or 1.0
    return [
        (f"{'*' if name in kept else ' '} {name}", f"{cost:.3g}", "█" * max(round(_BAR * cost / most), 0))
        for name, cost in ranking.items()
    ]


def ranking_svg(gates: Mapping[str, GateRecord], *, title: str) -> str:
    """Return a picture with a chart for each format, in light and dark as its reader has it.

    Args:
        gates: By format; each with a ranking.
        title: What is shown, and in which unit.
    """
    parts = []
    top = _TOP
    for name, gate in gates.items():
        kept, most = kept_parts(gate), max([*gate.ranking.values(), 0.0]) or 1.0
        parts.append(f'<text x="12" y="{top}" font-weight="600">{escape(name)}</text>')
        for row, (part, cost) in enumerate(gate.ranking.items(), 1):
            middle = top + row * _ROW
            width = max(_RIGHT * cost / most, 1)
            kind = "kept" if part in kept else "bar"
            parts.append(
                f'<text x="{_LEFT - 10}" y="{middle}" text-anchor="end">{escape(part)}</text>'
                f'<rect class="{kind}" x="{_LEFT}" y="{middle - 12}" width="{width:.1f}" height="15"/>'
                f'<text class="note" x="{_LEFT + width + 6:.1f}" y="{middle}">{cost:.3g}</text>'
            )
        top += (len(gate.ranking) + 2) * _ROW
    width = _LEFT + _RIGHT + 90
    note = "orange: kept in more bits" if any(kept_parts(gate) for gate in gates.values()) else "nothing had to be kept"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 8}" viewBox="0 0 {width} {top + 8}" '
        f'role="img" aria-label="{escape(title)}"><style>{_STYLE}</style><rect class="page" width="100%" height="100%"/>'
        f'<text x="12" y="22">{escape(title)}</text>'
        + "".join(parts)
        + f'<text class="note" x="12" y="{top}">{note}</text></svg>\n'
    )
