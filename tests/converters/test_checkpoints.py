"""Checkpoints of llama2.c and llama.cpp as KerasHub models, against an independent run and against each other."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.checkpoints import read_gguf, read_llama2c, read_llama2c_tokenizer, to_keras_hub
from edgelm_converters.checkpoints.llama import halves_from_pairs
from llama2c_reference import forward, parse
from tokenizers import Tokenizer, pre_tokenizers

from edgelm.errors import ModelError, TokenizerError

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 32, 64, 2, 4, 2, 96, 16
KEYS = WIDTH // HEADS * KV_HEADS
IDS = [1, 5, 90, 17, 3, 3, 64]


def make_llama2c(*, tied: bool) -> bytes:
    """Return a random checkpoint of version 0."""
    generator = np.random.default_rng(7)
    header = struct.pack("<7i", WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY if tied else -VOCABULARY, CONTEXT)
    shapes: list[tuple[int, ...]] = [
        (VOCABULARY, WIDTH),
        (LAYERS, WIDTH),
        (LAYERS, WIDTH, WIDTH),
        (LAYERS, KEYS, WIDTH),
        (LAYERS, KEYS, WIDTH),
        (LAYERS, WIDTH, WIDTH),
        (LAYERS, WIDTH),
        (LAYERS, HIDDEN, WIDTH),
        (LAYERS, WIDTH, HIDDEN),
        (LAYERS, HIDDEN, WIDTH),
        (WIDTH,),
        (2, CONTEXT, WIDTH // HEADS // 2),
        *([] if tied else [(VOCABULARY, WIDTH)]),
    ]
    return header + b"".join(generator.normal(0, 0.3, shape).astype("<f4").tobytes() for shape in shapes)


def scores(model: Any, ids: list[int]) -> Any:
    batch = np.asarray([ids], np.int32)
    return np.asarray(model({"token_ids": batch, "padding_mask": np.ones_like(batch)}))[0]


def rounding(expected: Any) -> float:
    """Return how far float32 sums may be off: 2**-24 of its size for every term of the sums on the way to a score."""
    terms = LAYERS * (4 * WIDTH + len(IDS) + HIDDEN) + WIDTH
    return float(terms * 2**-24 * np.abs(expected).max())


def test_rows_for_pairs_become_rows_for_halves() -> None:
    rows = np.arange(2 * 6, dtype=np.float32).reshape(12, 1)  # two heads of six
    assert halves_from_pairs(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


# --- llama2.c ---


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_computes_what_the_checkpoint_computes(tmp_path: Path, tied: bool) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("keras_hub")
    (tmp_path / "model.bin").write_bytes(make_llama2c(tied=tied))
    model = to_keras_hub(read_llama2c(tmp_path / "model.bin"), name="model")
    expected = forward(parse(make_llama2c(tied=tied)), IDS)
    assert np.abs(scores(model, IDS) - expected).max() <= rounding(expected)
    assert model.count_params() == parse_count(tied=tied)
    assert model.name == "model"
    # KerasHub forgets what is tied when it saves a Llama: the file must load all the same.
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert np.array_equal(scores(again, IDS), scores(model, IDS))


def parse_count(*, tied: bool) -> int:
    """Return the number of weights: the floats of the file without its rotary tables."""
    return (len(make_llama2c(tied=tied)) - 28) // 4 - CONTEXT * (WIDTH // HEADS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"24ka" + bytes(300), "version 1 or later"),
        (bytes(28), "make no Llama"),
        (struct.pack("<7i", 32, 64, 2, 5, 2, 96, 16), "make no Llama"),
        (make_llama2c(tied=True)[:-4], "is cut short, or no llama2.c checkpoint"),
        (make_llama2c(tied=True) + bytes(4), "its header says"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_llama2c(tmp_path / "model.bin")


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_llama2c(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<ifi", 7, 0.0, 5) + b"<unk>", "has 1 pieces, and 259 come first"),
        (struct.pack("<ifi", 7, 0.0, 5) + b"<un", "is cut short in piece 0"),
        (struct.pack("<ifi", 7, 0.0, 2) + b"\xff\xfe", "damaged, at piece 0"),
        (struct.pack("<if", 7, 0.0), "damaged, at piece 0"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tok.bin").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        read_llama2c_tokenizer(tmp_path / "tok.bin")


# --- GGUF ---

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(path: Path, content: bytes, **changes: Any) -> None:
    """Write a llama2.c checkpoint as GGUF: both rotate in pairs, so that the rows are the same."""
    gguf = pytest.importorskip("gguf")
    model = parse(content)
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(changes.get("kind", "gpt2"))
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|im_start|>", "<|im_end|>", *ALPHABET, "hi"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(ALPHABET) + 1)])
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(changes.get("add_start", False))
    if template := changes.get("template"):
        writer.add_chat_template(template)

    def add(name: str, values: Any) -> None:
        if name in changes.get("without", ()):
            return
        values = np.asarray(values, np.float32)
        if values.ndim == 2 and changes.get("compressed"):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", model["embedding"])
    add("output_norm.weight", model["norm"])
    if model["head"] is not model["embedding"]:
        add("output.weight", model["head"])
    names = {
        "norm1": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output", "norm2": "ffn_norm",
        "w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down",
    }  # fmt: skip
    for number in range(LAYERS):
        for name, tensor in names.items():
            add(f"blk.{number}.{tensor}.weight", model[name][number])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_computes_what_its_tensors_say(tmp_path: Path, tied: bool) -> None:
    pytest.importorskip("keras_hub")
    write_gguf(tmp_path / "model.gguf", make_llama2c(tied=tied))
    read = read_gguf(tmp_path / "model.gguf")
    model = to_keras_hub(read.checkpoint, name="model")
    expected = forward(parse(make_llama2c(tied=tied)), IDS)
    assert np.abs(scores(model, IDS) - expected).max() <= rounding(expected)
    assert (read.name, read.chat_template, read.checkpoint.context_length) == ("tiny", None, CONTEXT)


def test_compressed_gguf_is_within_half_a_step(tmp_path: Path) -> None:
    content = make_llama2c(tied=True)
    write_gguf(tmp_path / "plain.gguf", content)
    write_gguf(tmp_path / "small.gguf", content, compressed=True)
    plain, small = (read_gguf(tmp_path / name).checkpoint for name in ("plain.gguf", "small.gguf"))
    for one, other in zip(plain.layers, small.layers, strict=True):
        for name in ("query", "key", "value", "output", "gate", "up", "down"):
            exact, near = getattr(one, name), getattr(other, name)
            # Q8_0: 127 steps on either side, in blocks of 32 along a row; its scale is rounded to float16 (2**-11 of it),
            # which moves the 127th step by a sixteenth of one.
            steps = np.abs(exact.reshape(len(exact), -1, 32)).max(-1, keepdims=True) / 127
            error = np.abs(exact - near).reshape(len(exact), -1, 32)
            assert (error <= steps * (0.5 + 127 * 2**-11)).all()
            assert error.max() > 0


def test_tokenizer_of_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_llama2c(tied=True), template="{{ messages }}")
    read = read_gguf(tmp_path / "model.gguf")
    text = "<|im_start|>hi hi 12<|im_end|>"
    assert read.tokenizer.encode(text).tokens == ["<|im_start|>", "hi", "Ġ", "hi", "Ġ", "1", "2", "<|im_end|>"]
    assert read.tokenizer.decode(read.tokenizer.encode("naïve 東京").ids) == "naïve 東京"
    assert read.chat_template == "{{ messages }}"
    write_gguf(tmp_path / "start.gguf", make_llama2c(tied=True), add_start=True)
    assert read_gguf(tmp_path / "start.gguf").tokenizer.encode("hi").tokens == ["<|im_start|>", "hi"]
    assert isinstance(read.tokenizer, Tokenizer)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "gemma"}, ModelError, "holds the architecture 'gemma'"),
        ({"kind": "llama"}, TokenizerError, "a vocabulary of the kind 'llama'"),
        ({"without": ["output_norm.weight"]}, ModelError, "has no tensor 'output_norm.weight'"),
    ],
)
def test_other_gguf_files(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    write_gguf(tmp_path / "model.gguf", make_llama2c(tied=True), **changes)
    with pytest.raises(error, match=message):
        read_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but long enough"])
def test_damaged_gguf_files(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="is no GGUF file, or it is cut short"):
        read_gguf(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="There is no GGUF file"):
        read_gguf(tmp_path / "none.gguf")
