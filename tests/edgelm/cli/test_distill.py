"""``edgelm distill`` as a user meets it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from edgelm_converters.keras_model import build_keras_model
from edgelm_converters.source import load_source
from spec_factory import random_spec

from edgelm.cli import cli
from edgelm.cli.distill import _interruptible
from edgelm.errors import InputError, RecipeError

pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    few: dict[str, Any] = {"norm": "rms", "biases": False, "positions": 16, "head": ((3, "linear"),)}
    build_keras_model(random_spec(**few)).save(folder / "teacher.keras")
    ids = np.random.default_rng(0).integers(1, 50, (16, 6)).astype(np.int32)
    np.savez(folder / "data.npz", token_ids=ids)
    return folder


def _run(folder: Path, *options: str) -> Any:
    given = ["distill", str(folder / "teacher.keras"), "--data", str(folder / "data.npz"), *options]
    return CliRunner().invoke(cli, given)


def test_a_student_is_written_with_its_record(folder: Path) -> None:
    output = folder / "student.keras"
    result = _run(
        folder, "--student", "layers=1", "-o", str(output), "--epochs", "1", "--batch-size", "8", "--json",
        "--validation", str(folder / "data.npz"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)["record"]
    assert json.loads((folder / "student.json").read_text()) == printed
    assert (printed["steps"], printed["training"]["epochs"], printed["after"]["metric"]) == (2, 1, "agreement")
    assert load_source(output).kind == "keras"


def test_what_is_wrong_is_said_and_nothing_is_written(folder: Path) -> None:
    output = str(folder / "none.keras")
    for options, kind in (
        (("--student", "layers=9"), RecipeError),
        (("--student", "layers=1", "--temperature", "0"), RecipeError),
        (("--student", "layers=1", "--resume"), InputError),
    ):
        result = _run(folder, "-o", output, *options)
        assert isinstance(result.exception, kind)
        assert "\n" not in str(result.exception)
    assert _run(folder, "-o", output).exit_code == 2  # no student
    assert not (folder / "none.keras").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], *, kept: bool) -> None:
    output = tmp_path / "s.keras"
    if kept:
        (tmp_path / "s.keras.checkpoint").mkdir()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(click.exceptions.Exit) as stopped, _interruptible(output) as stop:  # noqa: PT012
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        raise KeyboardInterrupt
    assert stopped.value.exit_code == 130
    assert ("--resume goes on" if kept else "nothing was kept") in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
