"""The options of ``edgelm deploy`` that say nothing without another, before any device is reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgelm.cli import cli
from edgelm.errors import EdgelmError


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["host.invalid", "-o", "run.json"], "give --benchmark with them"),
        (["host.invalid", "--", "--seconds", "3"], "give --benchmark with them"),
        (["host.invalid", "--benchmark"], "Where shall the runs go"),
        (["host.invalid", "--benchmark", "-o", "there.json"], "exists already"),
        (["pi@-oProxyCommand=id"], "is no device"),
        (["host.invalid"], "There is no bundle at x.edgelm"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("{}")
    result = CliRunner().invoke(cli, ["deploy", "x.edgelm", *arguments])
    assert isinstance(result.exception, EdgelmError)
    assert told in str(result.exception)
    assert (tmp_path / "there.json").read_text() == "{}"
