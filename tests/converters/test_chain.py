"""TOML recipes and the options that stand for them: what they say, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgelm_converters.chain import Chain, Distil, Prune, Trim, chain_of_options, read_chain
from edgelm_converters.distill.settings import Training

from edgelm.errors import RecipeError

_WHOLE = """
[[step]]
do = "trim-vocabulary"
corpus = "texts/questions.txt"
limit = 5000

[[step]]
do = "prune"
heads = 0.25
ffn = 0.3

[[step]]
do = "distil"
data = "train.csv"
epochs = 2
learning-rate = 2e-5

[quantize]
recipe = "static_wi8_ai8"
ranges = "mse"
integer-io = true

[gate]
metric = "accuracy"
max-drop = 0
"""


def _read(tmp_path: Path, text: str) -> Chain:
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return read_chain(path)


def test_a_whole_chain_is_read_in_its_order_with_paths_beside_the_file(tmp_path: Path) -> None:
    chain = _read(tmp_path, _WHOLE)
    trim, prune, distil = chain.steps
    assert trim == Trim(tmp_path / "texts" / "questions.txt", 5000)
    assert isinstance(prune, Prune)
    assert (prune.pruning.heads, prune.pruning.ffn) == (0.25, 0.3)
    assert distil == Distil(tmp_path / "train.csv", Training(epochs=2, learning_rate=2e-5))
    assert (chain.recipe.name, chain.ranges, chain.integer_io) == ("static_wi8_ai8", "mse", True)
    assert chain.gate is not None
    assert (chain.gate.metric, chain.gate.max_drop) == ("accuracy", 0.0)


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    chain = _read(tmp_path, "")
    assert (chain.steps, chain.recipe.name, chain.gate) == ((), "dynamic_wi8_afp32", None)


def test_options_trim_before_they_prune() -> None:
    chain = chain_of_options(
        "int4", trim_vocabulary="words.txt", prune="heads=0.5", ranges=None, integer_io=False, gate=None
    )
    assert [type(step) for step in chain.steps] == [Trim, Prune]
    assert chain.recipe.name == "dynamic_wi4b32_afp32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "in the file: .*'x'"),
        ("[quantize]\nrecipee = 'int8'", r"in \[quantize\]: .*'recipee'.*recipe"),
        ("[gate]\nmetric = 'accuracy'\nmax_drop = 0.1", "'max_drop'.*max-drop"),
        ("[quantize]\nrecipe = 'int5'", "'int5'"),
        ("[quantize]\nrecipe = 8", "'recipe' is a str, and 8"),
        ("[gate]\nmetric = 'accuracy'", "needs both"),
        ("[step]\ndo = 'prune'", r"\[\[step\]\], in double brackets"),
        ("[[step]]\nheads = 0.2", "step 1: .*'None'"),
        ("[[step]]\ndo = 'shrink'", "step 1: .*'shrink'"),
        ("[[step]]\ndo = 'prune'\nhats = 1", "step 1: .*hats"),
        ("[[step]]\ndo = 'trim-vocabulary'", "step 1 .*corpus"),
        ("[[step]]\ndo = 'trim-vocabulary'\ncorpus = 7", "step 1 .*corpus"),
        ("[[step]]\ndo = 'trim-vocabulary'\ncorpus = 'a.txt'\nsize = 7", "'size'"),
        ("[[step]]\ndo = 'distil'\ndata = 'a.csv'", "step 1 distils a model into itself"),
        (
            "[[step]]\ndo = 'distil'\ndata = 'a.csv'\nrecipe = 'int4'\n[quantize]\nrecipe = 'int8'",
            "step 1 trains for the rounding of dynamic_wi4b32_afp32, and dynamic_wi8_afp32 is what",
        ),
        ("[[step]]\ndo = 'prune'\nffn = 0.3\n[[step]]\ndo = 'prune'\nffn = 0.3", "steps 1 and 2 do the same"),
        ("[[step]]\ndo = 'distil'\ndata = 'a.csv'\nepochs = 0", "epochs is 0"),
        ("[[step]]\ndo = 'distil'\ndata = 'a.csv'\nepochs = 'two'", "epochs"),
        ("[quantize]\nranges = 'mse'", "'ranges' is for static recipes"),
        ("[quantize]\nrecipe = 'full-int8'\nranges = 'msee'", "'msee'"),
        ("[quantize", "not valid TOML"),
    ],
)
def test_what_is_not_known_or_makes_no_sense_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        _read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "my.toml" in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_chain(tmp_path / "none.toml")
