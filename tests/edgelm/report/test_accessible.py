"""The page without a browser: colours that can be told apart, headings in order, names for everything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from report_factory import every_kind

from edgelm.report import render_html

CSS = files("edgelm.report").joinpath("page.css").read_text(encoding="utf-8")
_RULE = re.compile(r"--([a-z0-9-]+): (#[0-9a-f]{6})")

# WCAG 2.2, 1.4.3: 4.5 for text; 1.4.11: 3 for what must be seen to understand a picture or use a control.
TEXT, PICTURE = 4.5, 3.0
PAIRS = [
    *((ink, ground, TEXT) for ink in ("ink", "muted", "accent") for ground in ("card", "ground")),
    ("warn-ink", "warn", TEXT),
    ("card", "accent", TEXT),  # the chosen badge
    ("ink", "grid", TEXT),  # the other badges
    *((f"s{series}", "card", PICTURE) for series in range(8)),
    *((part, "card", PICTURE) for part in ("accent", "second", "third", "edge")),
    ("edge", "ground", PICTURE),
]


def _themes() -> dict[str, dict[str, str]]:
    light = dict(_RULE.findall(CSS.split("@media")[0]))
    dark = dict(_RULE.findall(CSS.split("@media screen and (prefers-color-scheme: dark)")[1].split("@media")[0]))
    return {"light": light, "dark": {**light, **dark}}


def _luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("one", "other", "least"), PAIRS)
def test_colours_can_be_told_from_what_they_are_on(theme: str, one: str, other: str, least: float) -> None:
    colours = _themes()[theme]
    light, dark = sorted((_luminance(colours[one]), _luminance(colours[other])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= least


def test_the_dark_theme_changes_every_colour_that_it_must() -> None:
    themes = _themes()
    assert themes["light"].keys() == themes["dark"].keys()
    assert all(themes["light"][name] != themes["dark"][name] for name in themes["light"])


class _Outline(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.headings: list[int] = []
        self.landmarks: list[str] = []
        self.language: str | None = None
        self.pictures: list[str] = []
        self.tables_in_roles: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("main", "header", "footer"):
            self.landmarks.append(tag)
        if tag == "html":
            self.language = attributes.get("lang")
        if tag == "svg" and attributes.get("role") == "img":
            self.pictures.append(attributes.get("aria-label") or "")
        roles = {"table": "table", "tr": "row", "td": "cell", "thead": "rowgroup", "tbody": "rowgroup"}
        if tag in roles and attributes.get("role") != roles[tag]:
            self.tables_in_roles.append((tag, attributes.get("role")))


def test_the_outline() -> None:
    outline = _Outline(render_html(every_kind(), battery_wh=20))
    assert outline.language == "en"
    assert outline.landmarks.count("main") == 1
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    # No level is left out on the way down.
    assert all(here - before <= 1 for before, here in zip(outline.headings, outline.headings[1:], strict=False))
    # Tables that become cards on a phone stay tables to a screen reader, by their roles.
    assert outline.tables_in_roles == []


def test_a_picture_tells_its_figures() -> None:
    pictures = _Outline(render_html(every_kind(), battery_wh=20)).pictures
    assert pictures
    for label in pictures:
        assert len(label) > 20
        assert re.search(r"\d|none", label)
    assert any("42 at 0, 37.3 at 512, 28 at 2048" in label for label in pictures)
    assert any("p50 3.58 ms, p90 5.18 ms, p99 8.88 ms" in label for label in pictures)
