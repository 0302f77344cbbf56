"""The ranking of a model's parts: rows for a terminal, a picture, and the command that shows them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from bundle_factory import make_classifier_bundle
from click.testing import CliRunner

from edgelm.bundle import GateRecord, GateStep
from edgelm.cli import cli
from edgelm.report.ranking import kept_parts, ranking_rows, ranking_svg

_STEPS = (GateStep((), 0.7, 100), GateStep(("encoder.0.feed_forward.down (16 bits)",), 0.9, 120))
_RANKING = {"encoder.0.feed_forward.down": 0.04, "head": 0.01, "embeddings": 0.0}
_GATE = GateRecord("accuracy", "test.csv", 50, 0.91, 0.02, 0.9, _STEPS, _RANKING)
_SVG = "{http://www.w3.org/2000/svg}"


def test_rows_have_bars_in_proportion_and_mark_what_was_kept() -> None:
    rows = ranking_rows(_RANKING, kept_parts(_GATE))
    assert [len(bar) for _, _, bar in rows] == [32, 8, 0]
    assert [name[0] for name, _, _ in rows] == ["*", " ", " "]


def test_rows_of_a_ranking_without_a_cost() -> None:
    assert ranking_rows({"head": 0.0}, ()) == [("  head", "0", "")]


def test_the_picture_is_xml_with_a_bar_a_part() -> None:
    picture = ranking_svg({"tflite": _GATE, "onnx": _GATE}, title="a < b & c")
    root = ET.fromstring(picture)  # noqa: S314 - our own
    bars = [bar for bar in root.iter(f"{_SVG}rect") if bar.get("class") in ("bar", "kept")]
    assert len(bars) == 6
    assert [bar.get("class") for bar in bars[:3]] == ["kept", "bar", "bar"]
    widths = [float(bar.get("width", "0")) for bar in bars[:2]]
    assert widths[0] / widths[1] == 4
    assert root.get("aria-label") == "a < b & c"


def _with_gate(folder: Path) -> Path:
    bundle = make_classifier_bundle(folder, fake_files=True)
    path = bundle / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    steps = [{"kept": list(step.kept), "value": step.value, "size_bytes": step.size_bytes} for step in _STEPS]
    data["artifacts"][0]["gate"] = {**vars(_GATE), "steps": steps}
    path.write_text(json.dumps(data), encoding="utf-8")
    return bundle


def test_the_command_shows_both(tmp_path: Path) -> None:
    bundle, picture = _with_gate(tmp_path), tmp_path / "ranking.svg"
    shown = CliRunner().invoke(cli, ["inspect", str(bundle), "--sensitivity", "-o", str(picture)])
    assert shown.exit_code == 0, shown.output
    assert "* encoder.0.feed_forward.down" in shown.output
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    whole = CliRunner().invoke(cli, ["inspect", str(bundle)])
    assert "allowed to lose 0.02: passed, 1 part kept in more bits, 2 artifacts tried" in whole.output


def test_a_bundle_without_a_ranking_says_how_to_get_one(tmp_path: Path) -> None:
    bundle = make_classifier_bundle(tmp_path, fake_files=True)
    shown = CliRunner().invoke(cli, ["inspect", str(bundle), "--sensitivity"])
    assert shown.exit_code == 1
    assert "holds no ranking of its parts: convert it again with --metric" in str(shown.output) + str(shown.exception)
