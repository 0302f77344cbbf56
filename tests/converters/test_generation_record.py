"""What a bundle says of generation: start and stop tokens, sampler, chat template; against KerasHub and the makers' formats."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from edgelm_converters.chat_templates import FORMATS, read_format
from edgelm_converters.generation import find_chat_template, generation_record
from edgelm_converters.source import Source
from edgelm_converters.tokenizer import to_hugging_face
from edgelm_converters.tokenizer_sentencepiece import special_name
from edgelm_runtimes.chat_template import ChatTemplate
from jinja2.sandbox import ImmutableSandboxedEnvironment
from spec_factory import random_decoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgelm.errors import InputError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]


def make_source(name: str = "model", *, tokenizer: Any = None, sampler: Any = None) -> Source:
    preprocessor = None if tokenizer is None else SimpleNamespace(tokenizer=tokenizer)
    return Source("keras", SimpleNamespace(sampler=sampler), name, f"{name}.keras", preprocessor)


def word_level(*tokens: str, start: str | None = None) -> Tokenizer:
    words = ("[UNK]", "hello", *tokens)
    result = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    if start is not None:
        result.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, words.index(start))]
        )
    return result


def record(source: Source, tokenizer: Tokenizer | None, vocabulary: int = 64, **settings: Any) -> Any:
    spec = random_decoder(vocabulary=vocabulary)
    return generation_record(source, tokenizer, spec, **{"context_length": 32, "chat_template": None, **settings})


def render(template: str, *, add_generation_prompt: bool = True, messages: Any = MESSAGES, trim: bool = True) -> str:
    """Render as Hugging Face's `apply_chat_template` does, or without its trimming of blocks."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
    made = environment.from_string(template)
    return made.render(messages=messages, bos_token="<B>", eos_token="<E>", add_generation_prompt=add_generation_prompt)


# --- Start and stop ---


def test_record_has_the_model_s_sizes() -> None:
    made = record(make_source(), word_level(), vocabulary=48, context_length=17, chat_template="chat_template.jinja")
    assert (made.context_length, made.vocabulary_size, made.chat_template) == (17, 48, "chat_template.jinja")


def test_start_token_is_the_one_that_the_tokenizer_adds() -> None:
    assert record(make_source(), word_level("<s>", start="<s>")).start_id == 2
    assert record(make_source(), word_level("<s>")).start_id is None
    assert record(make_source(), None).start_id is None


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("<end_of_turn>", "<eos>"), {"<eos>", "<end_of_turn>"}),
        (("<|eot_id|>", "<|end_of_text|>"), {"<|eot_id|>", "<|end_of_text|>"}),
        (("<|endoftext|>", "<|im_end|>", "<|im_start|>"), {"<|endoftext|>", "<|im_end|>"}),
        (("<|endoftext|>", "<|end|>"), {"<|endoftext|>", "<|end|>"}),
        ((special_name("</s>"),), {special_name("</s>")}),
        ((" </s>",), {" </s>"}),
        (("other",), set()),
    ],
)
def test_stop_tokens_of_a_tokenizer_file(tokens: tuple[str, ...], expected: set[str]) -> None:
    tokenizer = word_level(*tokens)
    assert {tokenizer.id_to_token(index) for index in record(make_source(), tokenizer).stop_ids} == expected


def test_stop_tokens_of_keras_hub_come_first() -> None:
    hub = SimpleNamespace(end_token_id=7, end_token2_id=5)
    tokenizer = word_level("</s>", "<|im_end|>")
    # </s> (2) is not what this model's `generate` stops at.
    assert record(make_source(tokenizer=hub), tokenizer).stop_ids == (7, 5, 3)
    assert record(make_source(tokenizer=SimpleNamespace(end_token_id=3)), tokenizer).stop_ids == (3,)
    assert record(make_source(tokenizer=hub), None).stop_ids == (7, 5)


def test_stop_tokens_beyond_the_model_s_scores_are_left_out() -> None:
    tokenizer = word_level(*(f"w{index}" for index in range(70)), "<|im_end|>")
    assert record(make_source(), tokenizer, vocabulary=64).stop_ids == ()


@pytest.mark.needs_tensorflow
def test_stop_tokens_are_those_of_generate() -> None:
    """Against what `generate` hands to its compiled function, for the models that stop at more than one token."""
    keras_hub = pytest.importorskip("keras_hub")
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "hi", *special])}
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(
        keras_hub.models.Llama3Tokenizer(vocabulary, ["h i"]), sequence_length=8
    )
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=len(vocabulary), num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8,
        intermediate_dim=8,
    )  # fmt: skip
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor)
    stops: list[list[int]] = []

    def step(inputs: Any, stop_token_ids: Any = None) -> Any:
        stops.append(list(stop_token_ids))
        return inputs

    model.compile(sampler="greedy")
    model.make_generate_function = lambda: step
    model.generate(["hi"])
    source = Source("keras", model, "model", "model", preprocessor)
    made = record(source, to_hugging_face(preprocessor, max_length=8), vocabulary=len(vocabulary))
    assert list(made.stop_ids) == stops[0]
    assert made.start_id == vocabulary["<|begin_of_text|>"]


# --- Sampling ---


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("TopKSampler", {}, (None, None, None)),
        ("TopKSampler", {"k": 40}, (1.0, 40, None)),
        ("TopKSampler", {"temperature": 0.7}, (0.7, 5, None)),
        ("TopPSampler", {"p": 0.9, "temperature": 0.6}, (0.6, None, 0.9)),
        ("TopPSampler", {"p": 0.9, "k": 20}, (1.0, 20, 0.9)),
        ("RandomSampler", {"temperature": 0.8}, (0.8, None, None)),
        ("GreedySampler", {}, (None, None, None)),
        ("BeamSampler", {}, (None, None, None)),
    ],
)
def test_a_sampler_that_somebody_chose_is_recommended(name: str, settings: dict[str, Any], expected: Any) -> None:
    samplers = pytest.importorskip("keras_hub").samplers
    made = record(make_source(sampler=getattr(samplers, name)(**settings)), None)
    assert (made.temperature, made.top_k, made.top_p) == expected


# --- Chat templates ---

# As the makers write them, with <B> and <E> for the start and end tokens.
WRITTEN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<B><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<B><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<B>[INST] Be brief.\n\nHello [/INST] Hi<E>[INST] Bye [/INST]",
    "phi3": "<B><|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n<|user|>\nBye<|end|>\n"
    "<|assistant|>\n",
}


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_written_as_their_makers_write_them(name: str, trim: bool) -> None:
    template = read_format(name)
    assert render(template, trim=trim) == WRITTEN[name]
    assert ChatTemplate(template, start="<B>", stop="<E>").render(MESSAGES) == WRITTEN[name]
    # A finished answer stays as it is when the conversation goes on, so that a cache of it can be used again.
    assert render(template, messages=MESSAGES[:3], add_generation_prompt=False, trim=trim) in WRITTEN[name]


@pytest.mark.parametrize(
    "name", ["gemma_instruct_2b_en", "Llama-3.2-1B-Instruct", "phi3-mini-4k-instruct", "gemma-2b-it"]
)
def test_documented_format_of_a_tuned_model(name: str) -> None:
    family = next(family for family in ("gemma", "llama3", "phi3") if family[:5] in name.lower().replace("-", ""))
    template, notes = find_chat_template(make_source(name), word_level(*FORMATS[family]), None)
    assert template == read_format(family)
    assert notes == (f"No chat template was given: the documented format '{family}' is used.",)


@pytest.mark.parametrize("name", ["gemma_2b_en", "smollm2", "llama_causal_lm", "title_writer", "chatty"])
def test_other_models_get_no_template(name: str) -> None:
    template, notes = find_chat_template(make_source(name), word_level(*FORMATS["chatml"]), None)
    assert template is None
    assert "nothing says that the model was tuned" in notes[0]
    assert "--chat-template" in notes[0]


def test_a_vocabulary_without_a_chat_format_gets_none() -> None:
    assert find_chat_template(make_source("my_instruct"), word_level(), None) == (None, ())
    assert find_chat_template(make_source("my_instruct"), None, None) == (None, ())


def test_mistral_is_known_by_its_tokenizer() -> None:
    mistral = type("MistralTokenizer", (), {})()
    template, _ = find_chat_template(make_source("mistral_instruct_7b_en", tokenizer=mistral), word_level(), None)
    assert template == read_format("mistral")


def test_templates_of_files(tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": text, "eos_token": "</s>"}))
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    for name in ("mine.jinja", "tokenizer_config.json", "chat_template.json"):
        assert find_chat_template(make_source("gemma_instruct"), word_level(), tmp_path / name) == (text, ())
    found, notes = find_chat_template(make_source(), word_level(), None, folder=tmp_path)
    assert (found, notes) == (text, ("The chat template is that of chat_template.json.",))


def test_a_folder_without_a_template_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"class_name": "keras_hub"}')
    assert find_chat_template(make_source(), word_level(), None, folder=tmp_path) == (None, ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jinja", b"{% for x in %}", "is not valid Jinja"),
        ("a.jinja", b"\xff", "is not UTF-8"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"{}", "no key 'chat_template'"),
        ("a.json", b"[]", "no key 'chat_template'"),
        ("missing.jinja", None, "cannot be read: No such file"),
    ],
)
def test_files_that_hold_no_template(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_chat_template(make_source(), word_level(), tmp_path / name)


def test_control_pieces_in_a_template_get_their_name(tmp_path: Path) -> None:
    tokenizer = word_level(special_name("<s>"), special_name("</s>"))
    tokenizer.add_special_tokens([special_name("<s>"), special_name("</s>")])
    (tmp_path / "a.jinja").write_text("{{ '<s>' + messages[0].content + '</s>' }}")
    template, _ = find_chat_template(make_source(), tokenizer, tmp_path / "a.jinja")
    assert template is not None
    assert tokenizer.encode(render(template, messages=[{"content": "hello"}])).ids == [2, 1, 3]
