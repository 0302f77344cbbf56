"""Microsoft's own runtime on the folders: the very tokens that the NumPy reference picks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from edgelm_converters.emit.genai import write_genai
from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
from edgelm_converters.spec import TransformerSpec
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_causal
from reference import forward
from spec_factory import random_decoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgelm.bundle import GenerationRecord
from edgelm.errors import ConversionError

genai = pytest.importorskip("onnxruntime_genai")

CONTEXT = 40
VOCABULARY = 320
TEXTS = ["Hello world, the cat sat on the mat.", "naïve café 12345", "Привет мир!", "<s>hi</s> there"]
TEMPLATE = "{% for m in messages %}{{ bos_token }}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ eos_token }}"

# Untied heads: with a random tied one the likeliest token is mostly the last one again.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "tied": False},
    "gpt2": {
        "norm": "layer", "positions": CONTEXT, "max_length": CONTEXT, "biases": True, "gated": False,
        "activation": "gelu_tanh", "kv_heads": 4, "tied": False,
    },
    "gemma2": {
        "post_norms": True, "soft_cap": 5.0, "head_soft_cap": 3.0, "windows": (6, None), "token_scale": 5.6,
        "activation": "gelu_tanh", "tied": False,
    },
    "qwen3": {"query_key_norm": True, "head_dim": 16, "tied": False},
    "partial rotary, filled up": {"head_dim": 20, "rotary": 6, "kv_heads": 1, "tied": False},
    "tied": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS * 20, trainer)
    return trained


def record(**changes: Any) -> GenerationRecord:
    return GenerationRecord(**{
        "context_length": CONTEXT, "vocabulary_size": VOCABULARY, "start_id": 0, "stop_ids": (), **changes
    })  # fmt: skip


def make_folder(folder: Path, spec: TransformerSpec, tokenizer: Tokenizer, generation: GenerationRecord) -> None:
    emit_onnx_decoder(spec, folder / "model.onnx", recipe="fp32", context_length=CONTEXT)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert write_genai(folder, spec, generation, context_length=CONTEXT) == ()


def generate(model: Any, *chunks: list[int], **options: Any) -> list[int]:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(**options)
    generator = genai.Generator(model, parameters)
    for chunk in chunks:
        generator.append_tokens(np.array([chunk], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def greedy(spec: TransformerSpec, ids: list[int], stop_ids: tuple[int, ...] = ()) -> list[int]:
    ids = list(ids)
    while len(ids) < CONTEXT:
        ids.append(int(forward(spec, {spec.token_input: np.array([ids], np.int32)})[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES.keys())
def test_genai_generates_the_tokens_of_the_reference(
    options: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    spec = random_decoder(vocabulary=VOCABULARY, **options)
    make_folder(tmp_path, spec, tokenizer, record())
    model = genai.Model(str(tmp_path))
    wanted = greedy(spec, [5, 70, 9, 110, 2])
    assert options == {} or len(set(wanted)) > 10  # else the test could pass by repeating itself
    assert generate(model, [5, 70, 9, 110, 2]) == wanted
    assert generate(model, [5, 70], [9, 110, 2]) == wanted


@pytest.mark.parametrize("recipe", ["fp16", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"])
def test_genai_generates_the_tokens_of_the_devices_own_adapter(
    recipe: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    # Wide enough for matrices that the recipes compress. The same graph and the same calls: every score is the same.
    spec = random_decoder(vocabulary=VOCABULARY, width=96, heads=6, feed_forward=128, tied=False)
    signatures = emit_onnx_decoder(spec, tmp_path / "model.onnx", recipe=recipe, context_length=CONTEXT)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_genai(tmp_path, spec, record(), context_length=CONTEXT)
    program = open_causal("onnx", tmp_path / "model.onnx", signatures, ProgramOptions(threads=1))
    ids = [5, 70, 9, 110, 2]
    scores = program.forward(np.array(ids, np.int32), 0)
    while True:
        ids.append(int(scores.argmax()))
        if len(ids) == CONTEXT:
            break
        scores = program.forward(np.array(ids[-1:], np.int32), len(ids) - 1)
    program.close()
    assert len(set(ids)) > 10
    assert generate(genai.Model(str(tmp_path)), ids[:5]) == ids


def test_genai_stops_at_any_stop_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=VOCABULARY, tied=False)
    free = greedy(spec, [5, 70, 9])
    stops = (free[20], free[12])
    make_folder(tmp_path, spec, tokenizer, record(stop_ids=stops))
    made = generate(genai.Model(str(tmp_path)), [5, 70, 9])
    wanted = greedy(spec, [5, 70, 9], stops)
    assert made == wanted[:-1]  # the stop token itself is left out
    assert len(wanted) < CONTEXT


def test_genai_reads_the_tokenizer_and_the_chat_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    spec = random_decoder(vocabulary=VOCABULARY)
    make_folder(tmp_path, spec, tokenizer, record(stop_ids=(1,), chat_template="chat_template.jinja"))
    theirs = genai.Tokenizer(genai.Model(str(tmp_path)))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert [int(token) for token in theirs.encode(text)] == ids
        assert theirs.decode(np.array(ids, np.int32)) == tokenizer.decode(ids)
    # The start token comes on demand, and nothing at the end.
    theirs.update_options(add_special_tokens="true")
    assert [int(token) for token in theirs.encode("hello")] == [0, *tokenizer.encode("hello").ids]
    messages = [{"role": "user", "content": "How are you?"}]
    wanted = jinja2.Template(TEMPLATE).render(messages=messages, bos_token="<s>", eos_token="</s>")
    assert theirs.apply_chat_template(messages=json.dumps(messages), add_generation_prompt=True) == wanted


def test_a_recommended_sampler_is_in_the_settings(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=VOCABULARY)
    make_folder(tmp_path, spec, tokenizer, record(temperature=0.7, top_k=40, top_p=0.9))
    search = json.loads((tmp_path / "genai_config.json").read_text())["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"], search["top_p"]) == (True, 0.7, 40, 0.9)
    assert len(generate(genai.Model(str(tmp_path)), [5, 70, 9])) == CONTEXT


def test_a_tokenizer_that_genai_has_not_is_said(tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=VOCABULARY)
    emit_onnx_decoder(spec, tmp_path / "model.onnx", recipe="fp32", context_length=CONTEXT)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    words.save(str(tmp_path / "tokenizer.json"))
    notes = write_genai(tmp_path, spec, record(), context_length=CONTEXT)
    assert "no tokenizer for WordLevel models: give it ids" in notes[0]
    assert not (tmp_path / "tokenizer_config.json").exists()
    assert generate(genai.Model(str(tmp_path)), [5, 70, 9]) == greedy(spec, [5, 70, 9])


def test_refusals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = random_decoder(vocabulary=VOCABULARY)
    with pytest.raises(ConversionError, match=r"tokenizer\.json cannot be read"):
        write_genai(tmp_path, spec, record(), context_length=CONTEXT)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConversionError, match=r"tokenizer\.json is not valid JSON"):
        write_genai(tmp_path, spec, record(), context_length=CONTEXT)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConversionError, match=r"chat_template\.jinja cannot be read"):
        write_genai(tmp_path, spec, record(chat_template="chat_template.jinja"), context_length=CONTEXT)
