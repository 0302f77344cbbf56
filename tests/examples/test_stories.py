"""The shipped stories model computes what its checkpoint computes, and reads texts as llama2.c does."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from llama2c_reference import encode, forward, parse, read_vocabulary

pytestmark = [
    pytest.mark.needs_tensorflow,
    # KerasHub leaves vocabulary.spm open when it reads it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

pytest.importorskip("keras_hub")
pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

FOLDER = Path(__file__).parents[2] / "examples" / "stories"
CHECKPOINT = FOLDER / "checkpoint" / "stories260K.bin"
VOCABULARY = FOLDER / "checkpoint" / "tok512.bin"
# A folder with stories15M.bin and Llama 2's tokenizer.model, where somebody has them.
LARGER = Path(os.environ.get("EDGELM_STORIES15M", FOLDER.parents[1] / "build" / "stories15M"))
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
    "red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
)


@pytest.fixture(scope="module")
def source() -> Any:
    """The model, read as `edgelm convert` reads it."""
    from edgelm_converters.source import load_source

    return load_source(FOLDER / "stories.keras")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    return parse(CHECKPOINT.read_bytes())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stories_make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scores(model: Any, ids: list[int]) -> Any:
    batch = np.asarray([ids], np.int32)
    return np.asarray(model({"token_ids": batch, "padding_mask": np.ones_like(batch)}))[0]


def test_keras_computes_what_the_checkpoint_computes(source: Any, tokenizer: Any, checkpoint: dict[str, Any]) -> None:
    ids = tokenizer.encode(STORY).ids
    expected = forward(checkpoint, ids)
    # Every sum of n float32 terms is off by at most n * 2**-24 of its size. On the way to a score are 5 layers with sums of
    # 64 (queries and keys, values, output, gate and up), as many as there are positions, and 172 (down); then 64 more.
    terms = 5 * (4 * 64 + len(ids) + 172) + 64
    assert np.abs(scores(source.model, ids) - expected).max() <= terms * 2**-24 * np.abs(expected).max()


def test_the_likeliest_tokens_tell_a_story(tokenizer: Any, checkpoint: dict[str, Any]) -> None:
    prompt = tokenizer.encode("Once upon a time").ids
    told = tokenizer.encode(STORY).ids
    choices = forward(checkpoint, told)[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert choices == told[len(prompt) :]


def test_keras_tells_the_same_story(source: Any, tokenizer: Any) -> None:
    told = tokenizer.encode(STORY).ids
    answers = np.sort(scores(source.model, told), -1)
    # Where it is sure beyond rounding: the first two choices of a float32 sum may change places within 1e-3.
    sure = answers[:-1, -1] - answers[:-1, -2] > 1e-3
    choices = scores(source.model, told)[:-1].argmax(-1)
    start = len(tokenizer.encode("Once upon a time").ids) - 1
    assert sure[start:].mean() > 0.9
    assert (choices[start:] == told[start + 1 :])[sure[start:]].all()


def test_the_file_carries_its_tokenizer(source: Any, tokenizer: Any) -> None:
    from edgelm_converters.tokenizer import PROBE_TEXTS, check_tokenizer, to_hugging_face

    assert source.preprocessor.sequence_length == 512
    assert check_tokenizer(source.preprocessor, tokenizer, PROBE_TEXTS) == []
    assert to_hugging_face(source.preprocessor, max_length=512).to_str() == tokenizer.to_str()


def test_texts_are_read_as_llama2c_reads_them(tokenizer: Any) -> None:
    from edgelm_converters.tokenizer import PROBE_TEXTS

    pieces = read_vocabulary(VOCABULARY)
    # The plain algorithm looks at every pair again after every merge: long texts take it long.
    texts = [STORY, *(text for text in PROBE_TEXTS if len(text) < 400)]
    for text in texts:
        # ▁ is SentencePiece's own space.
        expected = [1, *encode(pieces, text.replace("▁", " "))]
        assert tokenizer.encode(text).ids == expected, text
        assert tokenizer.decode(expected) == text.replace("▁", " ")


def test_the_shipped_files_are_what_the_script_makes(source: Any, script: ModuleType, tmp_path: Path) -> None:
    from edgelm_converters.source import load_source

    script.make(CHECKPOINT, VOCABULARY, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
    made = load_source(tmp_path / "stories.keras").model
    assert [tuple(weight.shape) for weight in made.weights] == [tuple(weight.shape) for weight in source.model.weights]
    for one, other in zip(made.get_weights(), source.model.get_weights(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.skipif(
    not (LARGER / "stories15M.bin").is_file(), reason="EDGELM_STORIES15M names no folder with stories15M.bin"
)
def test_the_larger_model_goes_the_same_way(script: ModuleType, tmp_path: Path) -> None:
    from edgelm_converters.source import load_source

    script.make(LARGER / "stories15M.bin", LARGER / "tokenizer.model", tmp_path)
    larger = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert larger.decode(larger.encode(STORY).ids) == STORY
    ids = larger.encode(STORY).ids
    assert (ids[0], larger.get_vocab_size()) == (1, 32_000)
    expected = forward(parse((LARGER / "stories15M.bin").read_bytes()), ids)
    # As above: 6 layers with sums of 288, of as many terms as there are positions, and of 768.
    terms = 6 * (4 * 288 + len(ids) + 768) + 288
    found = scores(load_source(tmp_path / "stories.keras").model, ids)
    assert np.abs(found - expected).max() <= terms * 2**-24 * np.abs(expected).max()


def test_the_readme_shows_the_story() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = " ".join(line.removeprefix(">").strip() for line in readme.splitlines())
    assert " ".join(STORY.split()) in " ".join(shown.split())


def test_the_script_says_what_is_wrong(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["make.py", str(tmp_path / "none.bin"), str(VOCABULARY), "--output", str(tmp_path)])
    assert script.main() == 1
    assert "none.bin cannot be read: No such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
