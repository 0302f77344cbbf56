"""The bundles that the devices open: those that the quickstart and the examples' READMEs make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from boards import native
from lanes import REPOSITORY, why_not

_INTENTS = REPOSITORY / "examples" / "intents"
_STORIES = REPOSITORY / "examples" / "stories"


@pytest.fixture(scope="session")
def intents(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the example classifier's bundle of a recipe, and of a target if one is given, made once."""
    folder = tmp_path_factory.mktemp("intents")

    def make(recipe: str, target: str | None = None) -> Path:
        bundle = folder / f"intents-{recipe}-{target}.edgelm"
        if not bundle.is_dir():
            options = ["--custom-objects", _INTENTS / "model.py", "--tokenizer", _INTENTS / "tokenizer.json"]
            options += ["--labels", _INTENTS / "labels.txt"]
            if target is not None:
                options += ["--for", target, "--sequence-length", "16"]
            if recipe.startswith("static"):
                # Enough for the ranges; all 10,000 questions would take minutes, and the recipe is not what is tested here.
                some = folder / "some.csv"
                some.write_text("".join((_INTENTS / "data" / "train.csv").read_text().splitlines(keepends=True)[:201]))
                options += ["--calibration", some]
            native("convert", _INTENTS / "intents.keras", "-o", bundle, "--recipe", recipe, *options)
        return bundle

    return make


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example language model's bundle, in float32."""
    bundle = tmp_path_factory.mktemp("stories") / "stories.edgelm"
    native("convert", _STORIES / "stories.keras", "-o", bundle, "--recipe", "fp32")
    return bundle


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """Three real questions."""
    return (_INTENTS / "questions.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def _lane(request: pytest.FixtureRequest) -> None:
    """Skip a test whose lane, its module's ``LANE``, is not set up."""
    reason = why_not(request.module.LANE)
    if reason is not None:
        pytest.skip(f"{request.module.LANE}: {reason}")
