"""Trained models for `compression.py`: what a compression costs shows on weights that have learnt something, and on real texts.

    python benchmarks/compression_models.py --data DIR [--cache DIR] [--models sst2-minilm,imdb]

| name | model | task |
|---|---|---|
| intents | the shipped example: 2 layers, 128 wide | banking77, 77 intents |
| banking77-minilm | MiniLM-L6-H384 (KerasHub BERT, 6 layers), fine-tuned whole | banking77, 77 intents |
| sst2-minilm | the same | SST-2, sentiment of a sentence; its 872 development sentences are the test |
| imdb | as keras.io's text classification, of KerasHub's layers: 2, 64 wide, post-norm, no pretraining | IMDB, 256 tokens |

Each becomes a folder of the cache: ``model.keras``, ``tokenizer.json``, ``labels.txt``, ``train.csv``, ``calibration.csv``,
``held_out.csv``, ``test.csv`` and ``training.json``. The data folder holds ``banking77/``, ``sst2/``, ``minilm-l6-v2/`` and
``imdb/``, as published. A folder that has ``training.json`` is not made again.

Needs: pip install -e '.[convert,keras-hub]'
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import shutil
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CACHE", "TASKS", "Task", "encode", "load_keras", "make", "read_table"]

HERE = Path(__file__).resolve().parent
INTENTS = HERE.parent / "examples" / "intents"
CACHE = Path.home() / ".cache" / "edgelm-data" / "compression"
CALIBRATION = 256  # texts
HELD_OUT = 1000
SEED = 7

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """One trained model and its data.

    Attributes:
        name: As in the table above, and of its folder.
        tokens: The most tokens of a text.
        epochs: Of training; 0 where the model is ready made.
        rate: The highest learning rate.
        batch: Texts a step.
        training_limit: Training texts that are used; None for all.
        test_limit: Test texts that are used; None for all.
        custom_objects: A Python file with the model's own layers.
    """

    name: str
    tokens: int
    epochs: int = 0
    rate: float = 0.0
    batch: int = 32
    training_limit: int | None = None
    test_limit: int | None = None
    custom_objects: Path | None = None


TASKS = {
    task.name: task
    for task in (
        Task("intents", 64, custom_objects=INTENTS / "model.py"),
        Task("banking77-minilm", 64, epochs=3, rate=2e-4),
        Task("sst2-minilm", 64, epochs=2, rate=1e-4, training_limit=6_000),
        Task("imdb", 256, epochs=2, rate=2e-3, test_limit=3_000),
    )
}


# ---------------------------------------------------------------------------------------------------- data


def read_table(path: Path) -> Rows:
    """Return the texts and labels of a file with a header, text first."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [(row[0], row[1]) for row in rows[1:]]


def write_table(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def read_data(task: Task, data: Path) -> tuple[dict[str, Rows], list[str]]:
    """Return the rows of each part (train, calibration, held_out, test) and the labels in the order of the outputs.

    Calibration is a part of the training data. What is held out, gates are measured on; the shipped example has seen it.
    """
    if task.name in ("intents", "banking77-minilm"):
        train, test = (read_table(data / "banking77" / f"{part}.csv") for part in ("train", "test"))
        labels = json.loads((data / "banking77" / "categories.json").read_text())
        if task.name == "intents":
            labels = (INTENTS / "labels.txt").read_text().split()
    elif task.name == "sst2-minilm":
        named = {"0": "negative", "1": "positive"}
        train, test = (
            [(text.strip(), named[label]) for text, label in read_table(data / "sst2" / f"{part}.tsv")]
            for part in ("train", "test")
        )
        labels = ["negative", "positive"]
    else:
        train, test = read_imdb(data / "imdb" / "reviews.json")
        labels = ["negative", "positive"]
    random.Random(SEED).shuffle(train)
    held_out, train = train[:HELD_OUT], train[HELD_OUT:][: task.training_limit]
    parts = {"train": train, "calibration": train[:CALIBRATION], "held_out": held_out, "test": test[: task.test_limit]}
    return parts, labels


def read_imdb(path: Path) -> tuple[Rows, Rows]:
    """Return half of the film reviews to train on and half to test on, at random; a review that is there twice counts once."""
    named = {0: "negative", 1: "positive"}
    rows = list({entry["t"]: named[entry["s"]] for entry in json.loads(path.read_text())}.items())
    random.Random(SEED).shuffle(rows)
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def encode(tokenizer: Any, texts: list[str], tokens: int) -> list[list[int]]:
    """Return the ids of each text, at most `tokens`."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    return [found.ids for found in tokenizer.encode_batch(texts)]


# ---------------------------------------------------------------------------------------------------- models


def load_minilm(folder: Path) -> Any:
    """Return the published MiniLM-L6-H384 as a KerasHub backbone; float16 weights on disk, float32 here."""
    import keras_hub
    import numpy as np

    with (folder / "model.fp16.safetensors").open("rb") as stream:
        size = struct.unpack("<Q", stream.read(8))[0]
        header, blob = json.loads(stream.read(size)), stream.read()
    config = json.loads((folder / "config.json").read_text())
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=config["vocab_size"], num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"], hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"], max_sequence_length=config["max_position_embeddings"],
    )  # fmt: skip

    def assign(variable: Any, name: str) -> None:
        start, stop = header[name]["data_offsets"]
        value = np.frombuffer(blob[start:stop], np.float16).astype(np.float32).reshape(header[name]["shape"])
        kernel = value.ndim == 2 and ("dense" in name or ".self." in name)
        variable.assign((value.T if kernel else value).reshape(variable.shape))

    def assign_pair(layer: Any, names: tuple[str, str], source: str) -> None:
        for name, end in zip(names, ("weight", "bias"), strict=True):
            assign(getattr(layer, name), f"{source}.{end}")

    dense, norm = ("kernel", "bias"), ("gamma", "beta")
    layer = backbone.get_layer
    assign(layer("token_embedding").embeddings, "embeddings.word_embeddings.weight")
    assign(layer("position_embedding").position_embeddings, "embeddings.position_embeddings.weight")
    assign(layer("segment_embedding").embeddings, "embeddings.token_type_embeddings.weight")
    assign_pair(layer("embeddings_layer_norm"), norm, "embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        block, source = layer(f"transformer_layer_{number}"), f"encoder.layer.{number}"
        attention = block._self_attention_layer
        for part in ("query", "key", "value"):
            assign_pair(getattr(attention, f"{part}_dense"), dense, f"{source}.attention.self.{part}")
        assign_pair(attention.output_dense, dense, f"{source}.attention.output.dense")
        assign_pair(block._self_attention_layer_norm, norm, f"{source}.attention.output.LayerNorm")
        assign_pair(block._feedforward_intermediate_dense, dense, f"{source}.intermediate.dense")
        assign_pair(block._feedforward_output_dense, dense, f"{source}.output.dense")
        assign_pair(block._feedforward_layer_norm, norm, f"{source}.output.LayerNorm")
    assign_pair(layer("pooled_dense"), dense, "pooler.dense")
    return backbone


def build(task: Task, data: Path, classes: int, vocabulary: int) -> Any:
    """Return an untrained classifier that gives logits.

    The table of MiniLM's tokens stays as it is: AdamW on its 11.7 million weights costs more than all the layers together.
    """
    import keras
    import keras_hub

    keras.utils.set_random_seed(SEED)
    if task.name != "imdb":
        backbone = load_minilm(data / "minilm-l6-v2")
        backbone.get_layer("token_embedding").trainable = False
        return keras_hub.models.BertTextClassifier(backbone, num_classes=classes, dropout=0.1)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    hidden = keras_hub.layers.TokenAndPositionEmbedding(vocabulary, task.tokens, 64, mask_zero=True)(ids)
    for _ in range(2):
        hidden = keras_hub.layers.TransformerEncoder(128, 4, dropout=0.1)(hidden)
    pooled = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling1D()(hidden))
    return keras.Model(ids, keras.layers.Dense(classes, name="sentiment")(pooled), name="imdb")


def make_tokenizer(task: Task, data: Path, texts: list[str]) -> Any:
    """Return the tokenizer of MiniLM, or one of 10,000 word pieces that was made from the training texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    if task.name != "imdb":
        return Tokenizer.from_file(str(data / "minilm-l6-v2" / "tokenizer.json"))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=10_000, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_keras(task: Task, cache: Path) -> Any:
    """Return the trained model."""
    import keras

    if task.custom_objects is not None:
        import importlib.util

        found = importlib.util.spec_from_file_location("compression_custom_objects", task.custom_objects)
        assert found is not None
        assert found.loader is not None
        found.loader.exec_module(importlib.util.module_from_spec(found))
    else:
        import keras_hub as _  # noqa: F401 - registers its layers
    return keras.models.load_model(cache / task.name / "model.keras", compile=False)


# ---------------------------------------------------------------------------------------------------- training


def batch_of(ids: list[list[int]], model: Any) -> dict[str, Any]:
    """Return texts as one padded batch under the model's input names; its length is a multiple of 8."""
    import numpy as np

    length = math.ceil(max(map(len, ids)) / 8) * 8
    padded = np.zeros((len(ids), length), np.int32)
    for row, text in zip(padded, ids, strict=True):
        row[: len(text)] = text
    everything = {"token_ids": padded, "padding_mask": (padded != 0).astype(np.int32), "segment_ids": padded * 0}
    return {tensor.name: everything[tensor.name] for tensor in model.inputs}


def batches(ids: list[list[int]], size: int, draw: random.Random) -> list[list[int]]:
    """Return rows in batches of about one length, in random order: little of a batch is padding."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]) + draw.uniform(0, 4))
    found = [order[start : start + size] for start in range(0, len(order), size)]
    draw.shuffle(found)
    return found


def train(model: Any, task: Task, ids: list[list[int]], labels: list[int]) -> float:
    """Train with AdamW and a linear warm-up and decay; return the seconds."""
    import keras
    import numpy as np

    steps = task.epochs * math.ceil(len(ids) / task.batch)
    schedule = keras.optimizers.schedules.PolynomialDecay(task.rate, steps, end_learning_rate=task.rate / 50)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    draw, start, done, losses = random.Random(SEED), time.monotonic(), 0, []
    for epoch in range(task.epochs):
        for rows in batches(ids, task.batch, draw):
            packed = batch_of([ids[row] for row in rows], model)
            inputs = packed if len(packed) > 1 else next(iter(packed.values()))
            # Keras's own: a KerasHub task would tokenise, and would report the mean of all steps so far
            loss = keras.Model.train_on_batch(model, inputs, np.asarray([labels[row] for row in rows]))
            losses.append(float(np.ravel(loss)[0]))
            done += 1
            if done % 50 == 0:
                print(f"{task.name}: epoch {epoch + 1}, step {done} of {steps}, mean loss {losses[-1]:.3f}", flush=True)
    return time.monotonic() - start


def accuracy(model: Any, ids: list[list[int]], labels: list[int]) -> float:
    right = 0
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        packed = batch_of([ids[row] for row in rows], model)
        scores = model(packed if len(packed) > 1 else next(iter(packed.values())), training=False)
        found = scores.numpy().argmax(axis=-1).tolist()
        right += sum(answer == labels[row] for answer, row in zip(found, rows, strict=True))
    return right / len(ids)


def make(task: Task, data: Path, cache: Path) -> Path:
    """Return the folder of a task, made where it is not there."""
    folder = cache / task.name
    if (folder / "training.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    parts, names = read_data(task, data)
    for part, rows in parts.items():
        write_table(folder / f"{part}.csv", rows)
    training, test = parts["train"], parts["test"]
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    record: dict[str, Any] = {
        "training_texts": len(training),
        "test_texts": len(test),
        "date": time.strftime("%Y-%m-%d"),
    }
    if task.name == "intents":
        shutil.copy(INTENTS / "intents.keras", folder / "model.keras")
        shutil.copy(INTENTS / "tokenizer.json", folder / "tokenizer.json")
    else:
        texts = [text for text, _ in training]
        tokenizer = make_tokenizer(task, data, texts)
        ids = encode(tokenizer, texts, task.tokens)
        tokenizer.save(str(folder / "tokenizer.json"))
        model = build(task, data, len(names), tokenizer.get_vocab_size())
        record["training_s"] = round(train(model, task, ids, [names.index(label) for _, label in training]))
        model.save(folder / "model.keras")
        found = encode(tokenizer, [text for text, _ in test], task.tokens)
        record["keras_accuracy"] = accuracy(model, found, [names.index(label) for _, label in test])
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{task.name}: {record}", flush=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--models", default=",".join(TASKS))
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    for name in arguments.models.split(","):
        make(TASKS[name], arguments.data, arguments.cache)


if __name__ == "__main__":
    main()
