"""The README's commands, run in order, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.slow]


def test_every_edgelm_command_and_the_python_blocks_run(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ edgelm ")]
    assert len(commands) >= 12
    for command in commands:
        result = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    printed = []
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    classified, told, translated = printed
    assert classified.startswith("change_pin ")
    assert "there was a little girl named Lily" in told
    assert translated.splitlines()[0].startswith("¿Dónde está la estación")


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\$ make (\S+)", README, re.MULTILINE)
    assert set(targets) == {"quickstart", "test"}
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)
    assert shlex.split((ROOT / ".ci" / "run").read_text().splitlines()[-1]) == ["make", "test"]
