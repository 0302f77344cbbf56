"""Small, complete bundles for tests: a real tokenizer, real model files, golden vectors computed by NumPy.

Test files import it as ``from bundle_factory import make_classifier_bundle`` (pytest's ``pythonpath`` has this folder).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tiny_models import VOCABULARY, Weights, signatures, write_onnx, write_tflite

from edgelm.bundle import (
    FORMAT,
    SCHEMA_VERSION,
    Artifact,
    BundleWriter,
    CacheRecord,
    GenerationRecord,
    GoldenCase,
    Manifest,
    ModelRecord,
    Parity,
    Port,
    RuntimeRecord,
    Signature,
    TokenizerRecord,
    write_golden,
)
from edgelm.bundle.manifest import Padding, Role, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "LABELS",
    "TEXTS",
    "make_byte_tokenizer",
    "make_classifier_bundle",
    "make_generating_bundle",
    "make_piece_tokenizer",
    "make_tokenizer",
]

LABELS = ("card", "cash", "transfer")
TEXTS = ("where is my card", "i want cash , please !", "please send my money to the new account now")
WORDS = (
    *(
        "where",
        "is",
        "my",
        "card",
        "i",
        "want",
        "cash",
        "please",
        "send",
        "money",
        "to",
        "the",
        "new",
        "account",
        "now",
    ),
    *(",", ".", "!", "?", "a", "b", "c", "##s", "##a", "##b", "##c"),
)
PAD_ID = 0
_MAX_LENGTH = 16


def make_tokenizer(max_length: int = _MAX_LENGTH) -> Tokenizer:
    """A BERT-like WordPiece tokenizer with 30 tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(max_length)
    return tokenizer


def make_classifier_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    formats: tuple[Literal["tflite", "onnx"], ...] = ("tflite", "onnx"),
    lengths: tuple[int, ...] = (4, 8, 16),
    role: Role = "logits",
    labels: tuple[str, ...] | None = LABELS,
    classes: int = 3,
    pool: bool = True,
    tokenizer: bool = True,
    fake_files: bool = False,
) -> Path:
    """Make ``folder/name.edgelm`` and return it.

    Args:
        folder: Exists already.
        name: Of the bundle.
        formats: Model files in it. Each runs in its runtime, and the TFLite one may run in ``tflite`` too.
        lengths: Of the TFLite file's signatures, the last being the most tokens that a text may have; with one length the
            padding is ``full``. The ONNX file takes any length.
        role: Of the output. The values are logits whatever it says.
        labels: Names of the classes.
        classes: Width of the output.
        pool: False gives an output row for each token.
        tokenizer: Whether there is one.
        fake_files: Write a few bytes instead of models, for the runtime ``fake``.
    """
    weights = Weights.random(classes)
    padding: Padding = "full" if len(lengths) == 1 else "masked"
    task: Task = (
        "classify" if role in ("logits", "probabilities", "sigmoid") else "embed" if role == "embedding" else "raw"
    )
    output = folder / f"{name}.edgelm"
    with BundleWriter(output, force=False) as writer:
        artifacts = []
        for kind in formats:
            path = writer.folder / f"model.{kind}"
            if fake_files:
                path.write_bytes(b"not a model: for the runtime 'fake'")
            elif kind == "tflite":
                write_tflite(path, weights, lengths, pool=pool)
            else:
                write_onnx(path, weights, pool=pool)
            artifacts.append(_artifact(kind, path, lengths, classes, role, pool=pool))
        cases = _golden(weights, lengths[-1], pool=pool, with_text=tokenizer)
        write_golden(writer.folder, cases)
        if tokenizer:
            make_tokenizer(lengths[-1]).save(str(writer.folder / "tokenizer.json"))
        writer.finish(
            Manifest(
                format=FORMAT,
                schema_version=SCHEMA_VERSION,
                name=name,
                created="2026-01-01T00:00:00+00:00",
                task=task,
                padding=padding,
                recipe="fp32",
                model=ModelRecord("tiny.keras", "tiny", "recognised", "tiny", None, 400, {"vocabulary": VOCABULARY}),
                artifacts=tuple(artifacts),
                tokenizer=TokenizerRecord("tokenizer.json", PAD_ID, lengths[-1], VOCABULARY) if tokenizer else None,
                labels=labels,
                golden="golden.npz",
                files={},
                tool_versions={"edgelm": "0.1.0"},
            )
        )
    return output


def _artifact(
    kind: Literal["tflite", "onnx"], path: Path, lengths: tuple[int, ...], classes: int, role: Role, *, pool: bool
) -> Artifact:
    runtimes = {
        "tflite": (RuntimeRecord("litert", "verified", "2.3.0"), RuntimeRecord("tflite", "untested", None, "not run")),
        "onnx": (RuntimeRecord("onnx", "verified", "1.32.0"),),
    }
    # Sums of at most 16 products of numbers of size 1 to 3 in float32: 16 * 2**-23 * 30 is 6e-5.
    parity = Parity(3, "real", 0.0, 30.0, 1e-4, 1.0, 1.0, "float32 sums in another order")
    return Artifact(
        format=kind,
        file=path.name,
        data_files=(),
        size_bytes=path.stat().st_size,
        signatures=signatures(kind, lengths, classes, role, pool=pool),
        runtimes=runtimes[kind],
        parity=parity,
        accuracy=None,
        operators={"GATHER": 1, "FULLY_CONNECTED": 1},
    )


def _golden(weights: Weights, max_length: int, *, pool: bool, with_text: bool) -> list[GoldenCase]:
    encoder = make_tokenizer(max_length)
    cases = []
    for text in TEXTS:
        ids = encoder.encode(text).ids
        array = np.array([ids], np.int32)
        mask = np.ones_like(array)
        cases.append(
            GoldenCase(
                text if with_text else None,
                ids if with_text else None,
                {"token_ids": array, "padding_mask": mask},
                {"answer": weights.logits(array, mask, pool=pool)},
            )
        )
    return cases


CHAT_TEMPLATE = """{%- for message in messages %}
{{- '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start|>assistant\n' }}
{%- endif %}"""
_GENERATING_TEXTS = ("the cash card and the new account", "naïve café 😀 漢字", "a, b, c, and the cash again")


def make_byte_tokenizer(start: str | None = None) -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2's: ``<|start|>`` is 0, ``<|end|>`` is 1, then 256 bytes and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_GENERATING_TEXTS, trainer)
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    return tokenizer


def make_piece_tokenizer() -> Tokenizer:
    """A BPE tokenizer over pieces with ``▁`` for spaces and bytes for unknown characters, as Llama's; ``<s>`` begins."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz,.", "an", "and", "▁a", "▁and", "th", "▁th", "▁the"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("a", "n"), ("an", "d"), ("▁", "a"), ("▁", "and"), ("t", "h"), ("▁", "th"), ("▁th", "e")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def make_generating_bundle(
    folder: Path,
    *,
    name: str = "talker",
    tokenizer: Tokenizer | None = None,
    text: bool = True,
    context_length: int = 64,
    start_id: int | None = None,
    stop_ids: tuple[int, ...] = (1,),
    chat_template: str | None = CHAT_TEMPLATE,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Path:
    """Make ``folder/name.edgelm``, a language model for the runtime ``fake``, and return it.

    Args:
        folder: Exists already.
        name: Of the bundle.
        tokenizer: `make_byte_tokenizer`'s without.
        text: False leaves the tokenizer out of the bundle.
        context_length: Positions.
        start_id: As the tokenizer adds it.
        stop_ids: End an answer.
        chat_template: Jinja; None for none.
        temperature: Recommended.
        top_k: Recommended.
        top_p: Recommended.
    """
    tokenizer = tokenizer or make_byte_tokenizer()
    size = tokenizer.get_vocab_size()
    output = folder / f"{name}.edgelm"
    with BundleWriter(output, force=False) as writer:
        (writer.folder / "model.tflite").write_bytes(b"not a model: for the runtime 'fake'")
        if text:
            tokenizer.save(str(writer.folder / "tokenizer.json"))
        if chat_template is not None:
            (writer.folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        write_golden(writer.folder, [])
        writer.finish(
            Manifest(
                format=FORMAT,
                schema_version=SCHEMA_VERSION,
                name=name,
                created="2026-01-01T00:00:00+00:00",
                task="generate",
                padding="masked",
                recipe="fp32",
                model=ModelRecord("tiny.keras", "tiny", "recognised", "tiny", None, 400, {"vocabulary": size}),
                artifacts=(_generating_artifact(size, context_length),),
                tokenizer=TokenizerRecord("tokenizer.json", 0, context_length, size) if text else None,
                labels=None,
                golden="golden.npz",
                files={},
                tool_versions={"edgelm": "0.1.0"},
                generation=GenerationRecord(
                    context_length,
                    size,
                    start_id,
                    stop_ids,
                    None if chat_template is None else "chat_template.jinja",
                    temperature,
                    top_k,
                    top_p,
                ),
            )
        )
    return output


def _generating_artifact(vocabulary_size: int, context_length: int) -> Artifact:
    shape = (1, 1, context_length, 2)
    cache = CacheRecord(
        1, ("kv_cache_k_{i}", "kv_cache_v_{i}"), ("kv_cache_k_{i}", "kv_cache_v_{i}"), shape, "float32", context_length
    )
    prefill, decode = (
        Signature(
            name,
            length,
            (Port("tokens", "int32", (1, length), "token_ids"), Port("input_pos", "int32", (length,), "positions")),
            () if name == "prefill_8" else (Port("logits", "float32", (1, 1, vocabulary_size), "logits"),),
            "prefill" if name == "prefill_8" else "decode",
            cache,
        )
        for name, length in (("prefill_8", 8), ("decode", 1))
    )
    return Artifact(
        format="tflite",
        file="model.tflite",
        data_files=(),
        size_bytes=35,
        signatures=(prefill, decode),
        runtimes=(RuntimeRecord("litert", "untested", None, "a fake"),),
        parity=Parity(1, "random", 0.0, 1.0, 1e-4, None, None, "nothing was compared"),
        accuracy=None,
        operators={},
    )
