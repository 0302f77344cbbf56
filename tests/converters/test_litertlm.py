"""What Google's LiteRT-LM makes of our files: it tokenizes, prefills, decodes and samples, and nothing of that is ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.litertlm import write_litertlm
from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder
from edgelm_converters.spec import TransformerSpec
from reference import forward
from spec_factory import random_decoder
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from edgelm.bundle.manifest import GenerationRecord
from edgelm.errors import ConversionError

litert_lm = pytest.importorskip("litert_lm")
pytest.importorskip("litert_lm_builder")

# One token a character, so that a text is its ids; the first and the last are special.
CHARACTERS = ["<s>", *map(chr, range(33, 127)), "</s>"]
START, STOP, LENGTH = 0, 95, 64

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tied": False},
    "gpt-2": {
        "norm": "layer", "positions": 64, "activation": "gelu_tanh", "gated": False, "biases": True, "kv_heads": 4,
        "tied": False,
    },
    "gemma 2": {
        "soft_cap": 3.0, "head_soft_cap": 8.0, "post_norms": True, "windows": (9, None), "activation": "gelu_tanh",
        "token_scale": 5.7, "kv_heads": 1,
    },
    "qwen 3": {"query_key_norm": True, "head_dim": 12, "windows": (None,), "tied": False, "seed": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Tokenizer(models.WordLevel({text: i for i, text in enumerate(CHARACTERS)}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@contextmanager
def _engine(
    folder: Path, tokenizer: Path, spec: TransformerSpec, *, template: str | None = None, **settings: Any
) -> Iterator[Any]:
    tflite, path = folder / "model.tflite", folder / "model.litertlm"
    options = {"recipe": "fp32", "caches": (32, LENGTH), "prefill": (8, 16), "verify": (4,)}
    emit_tflite_decoder(spec, tflite, **(options | settings.pop("emit", {})))
    generation = GenerationRecord(LENGTH, len(CHARACTERS), settings.pop("start", START), (STOP,), **settings)
    write_litertlm(path, tflite=tflite, tokenizer=tokenizer, generation=generation, chat_template=template)
    engine = litert_lm.Engine(str(path), backend=litert_lm.Backend.CPU(thread_count=1))
    try:
        yield engine
    finally:
        engine.close()


def _answer(engine: Any, prompt: str, count: int) -> str:
    session = engine.create_session(apply_prompt_template=False, max_output_tokens=count)
    try:
        session.run_prefill([prompt])
        (text,) = session.run_decode().texts
    finally:
        session.close()
    return str(text)


def _greedy(spec: TransformerSpec, ids: list[int], count: int) -> str:
    """Return what the definitions say: the likeliest token each time, up to the stop token; none of them a near tie."""
    ids = list(ids)
    first = len(ids)
    for _ in range(count):
        scores = forward(spec, {"token_ids": np.array([ids])})[0, -1]
        second, best = np.sort(scores)[-2:]
        assert best - second > 1e-4 * np.abs(scores).max()  # ten times what float32 may be off
        ids.append(int(scores.argmax()))
        if ids[-1] == STOP:
            break
    return "".join(CHARACTERS[i] for i in ids[first:] if i != STOP)


def _ids(text: str, *, start: bool = True) -> list[int]:
    return [START] * start + [CHARACTERS.index(character) for character in text]


@pytest.mark.parametrize("name", MODELS)
def test_generates_the_tokens_that_the_definitions_say(name: str, tokenizer: Path, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=len(CHARACTERS), width=48, **MODELS[name])
    seen = set()
    with _engine(tmp_path, tokenizer, spec) as engine:
        # Less than a prefill, a prefill and a padded one, and several up to near the end of the cache.
        for prompt, count in (
            ("Hi", 30),
            ("Onceuponatime,there", 20),
            ("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP", 16),
        ):
            answer = _answer(engine, prompt, count)
            assert answer == _greedy(spec, _ids(prompt), count)
            seen.update(answer)
    assert len(seen) > 10  # it does not only repeat itself


def test_without_a_start_token(tokenizer: Path, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=len(CHARACTERS), width=48, tied=False)
    with _engine(tmp_path, tokenizer, spec, start=None) as engine:
        assert _answer(engine, "Hello,world", 12) == _greedy(spec, _ids("Hello,world", start=False), 12)


@pytest.mark.parametrize("recipe", ["fp16", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"])
def test_gives_what_litert_gives(recipe: str, tokenizer: Path, tmp_path: Path) -> None:
    """The same file in LiteRT and in LiteRT-LM: the same kernels, and so the same tokens."""
    from edgelm_runtimes.adapters.litert_causal import open_causal
    from edgelm_runtimes.program import ProgramOptions

    spec = random_decoder(vocabulary=len(CHARACTERS), width=64, feed_forward=96, tied=False)
    emit: dict[str, Any] = {"recipe": recipe, "caches": (LENGTH,), "prefill": (8,), "verify": ()}
    signatures = emit_tflite_decoder(spec, tmp_path / "own.tflite", **emit)
    program = open_causal(tmp_path / "own.tflite", signatures, ProgramOptions(threads=1))
    ids = _ids("Onceuponatime")
    scores = program.forward(np.array(ids, np.int32), 0)
    answer = ""
    for position in range(len(ids), len(ids) + 20):
        token = int(scores.argmax())
        if token == STOP:
            break
        answer += CHARACTERS[token]
        scores = program.forward(np.array([token], np.int32), position)
    with _engine(tmp_path, tokenizer, spec, emit=emit) as engine:
        assert _answer(engine, "Onceuponatime", 20) == answer


CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "rendered"), [(None, "Hi"), (CHATML, "<user>Hi</s><assistant>"), ("{{ messages | length }}", "1")]
)
def test_templates_see_what_they_expect(template: str | None, rendered: str, tokenizer: Path, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=len(CHARACTERS), tied=False)
    with _engine(tmp_path, tokenizer, spec, template=template) as engine, engine.create_conversation() as conversation:
        for content in (
            "Hi",
            [{"type": "text", "text": "Hi"}],
            [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
        ):
            assert conversation.render_message_to_string({"role": "user", "content": content}) == rendered


def test_a_conversation_is_the_template_and_the_start_token(tokenizer: Path, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=len(CHARACTERS), width=48, tied=False)
    template = "{% for message in messages %}[{{ message['content'] | trim }}]{% endfor %}"
    with (
        _engine(tmp_path, tokenizer, spec, template=template) as engine,
        engine.create_conversation(max_output_tokens=8) as conversation,
    ):
        answer = str(conversation.send_message("Hi_there"))
    assert answer == _greedy(spec, _ids("[Hi_there]"), 8)


@pytest.mark.parametrize(
    ("settings", "sampler"),
    [({}, (1, 1.0, 1.0)), ({"temperature": 0.5, "top_k": 20, "top_p": 0.75}, (20, 0.75, 0.5)),
     ({"temperature": 0.5}, (len(CHARACTERS), 1.0, 0.5))],
)  # fmt: skip
def test_metadata(settings: dict[str, Any], sampler: tuple[Any, ...], tokenizer: Path, tmp_path: Path) -> None:
    from google.protobuf import text_format
    from litert_lm_builder.litertlm_builder import unpack
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    spec = random_decoder(vocabulary=len(CHARACTERS))
    with _engine(tmp_path, tokenizer, spec, **settings) as engine:
        assert (engine.bos_token_id, engine.eos_token_ids) == (START, [[STOP]])
        assert engine.tokenize("Hi") == _ids("Hi", start=False)
    unpacked = tmp_path / "unpacked"
    unpack(str(tmp_path / "model.litertlm"), str(unpacked))
    (stored,) = unpacked.glob("*.tflite")
    assert stored.read_bytes() == (tmp_path / "model.tflite").read_bytes()
    metadata = text_format.Parse((unpacked / "LlmMetadataProto.pbtext").read_text(), llm_metadata_pb2.LlmMetadata())
    assert metadata.max_num_tokens == LENGTH
    assert metadata.llm_model_type.WhichOneof("model_type") == "generic_model"
    written = metadata.sampler_params
    assert (written.k, written.p, written.temperature) == sampler
    assert (metadata.supports_thinking, metadata.supports_function_calling) == (False, False)
    assert "prefer_activation_type" in (unpacked / "model.toml").read_text()


def test_refuses_what_litert_lm_would_not_open(tokenizer: Path, tmp_path: Path) -> None:
    tflite, path = tmp_path / "model.tflite", tmp_path / "model.litertlm"
    for stops, message in (
        ((), "opens no model without a stop token"),
        ((4000,), r"stop token 4000 is not in tokenizer\.json"),
    ):
        generation = GenerationRecord(LENGTH, len(CHARACTERS), None, stops)
        with pytest.raises(ConversionError, match=message):
            write_litertlm(path, tflite=tflite, tokenizer=tokenizer, generation=generation, chat_template=None)
    assert not path.exists()
