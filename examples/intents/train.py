"""Train the intent classifier of this folder from nothing: tokenizer, masked-word pretraining, then the 77 intents.

    python examples/intents/train.py --pretrain-text spa.txt

writes `intents.keras`, `tokenizer.json`, `labels.txt` and `training.json`. With `--hold-out` it trains without a tenth
of the training questions, measures on those and leaves `held_out.json`: choices are made there, never on the test set.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tokenizers
from model import MAX_LENGTH, PAD_ID, build_classifier, build_encoder  # type: ignore[import-not-found]  # beside this
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
HELD_OUT_SHARE = 0.1
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[MASK]")
START, MASK = 2, 3
"""The ids of the last two, by their order; padding has id 0."""

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What shapes the run; `training.json` repeats it.

    The defaults are usual values for a model of this size; the README says which choices were compared, all of them on
    the held-out tenth of the training questions.
    """

    seed: int = 1
    vocabulary_size: int = 3000
    width: int = 128
    blocks: int = 2
    heads: int = 4
    feed_forward: int = 512
    dropout: float = 0.1
    pretrain_epochs: int = 4
    pretrain_batch: int = 128
    pretrain_rate: float = 1.5e-3
    domain_repeats: int = 3
    masked_share: float = 0.2
    epochs: int = 20
    batch: int = 64
    rate: float = 8e-4
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    merge_dropout: float = 0.1
    token_dropout: float = 0.1
    classifier_dropout: float = 0.3
    balance: float = 1.0
    teachers: int = 2
    teacher_epochs: int = 15
    distillation: float = 0.7
    ema: float = 0.99


# ---- data -----------------------------------------------------------------------------------------------------------


def read_questions(path: Path, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the texts and the class numbers of a CSV file with the columns `text` and `category`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"].strip() for row in rows], [labels.index(row["category"]) for row in rows]


def split_questions(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the row numbers (kept, held out), the latter `share` of every class, rounded to the nearest row."""
    generator = np.random.default_rng(seed)
    held_out: set[int] = set()
    for label in sorted(set(labels)):
        rows = [row for row, value in enumerate(labels) if value == label]
        held_out.update(generator.permutation(rows)[: round(share * len(rows))].tolist())
    return [row for row in range(len(labels)) if row not in held_out], sorted(held_out)


def read_lines(path: Path) -> list[str]:
    """Return the distinct lines of a text file, each up to its first tab, in the order of the file."""
    with path.open(encoding="utf-8") as file:
        return list(dict.fromkeys(text for line in file if (text := line.split("\t", 1)[0].strip())))


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """Return a lower-casing byte-pair tokenizer that starts every text with [CLS] and cuts it at `MAX_LENGTH` ids."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("’", "'"),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=list(SPECIAL_TOKENS), min_frequency=3, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", START)]
    )
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], merge_dropout: float = 0.0) -> list[Ids]:
    """Return the token ids of each text; `merge_dropout` is the chance that a merge is skipped (BPE-dropout)."""
    tokenizer.model.dropout = merge_dropout or None
    encoded = [np.asarray(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(list(texts))]
    tokenizer.model.dropout = None
    return encoded


def pad(rows: Sequence[Ids], multiple: int = 4) -> Ids:
    """Return the rows as one matrix, filled with `PAD_ID` up to the longest, rounded up to `multiple`."""
    longest = min(MAX_LENGTH, -(-max(map(len, rows)) // multiple) * multiple)
    matrix = np.full((len(rows), longest), PAD_ID, np.int32)
    for row, ids in zip(matrix, rows, strict=True):
        row[: len(ids)] = ids
    return matrix


def bucket(lengths: Sequence[int], batch: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the row numbers of every batch of one epoch: rows of about one length together, batches in random order.

    Half the work of a batch of unsorted questions is padding.
    """
    order = np.argsort(np.asarray(lengths) + generator.uniform(0, 6, len(lengths)))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    for number in generator.permutation(len(batches)):
        yield batches[number]


def hide_tokens(ids: Ids, share: float, generator: np.random.Generator) -> Ids:
    """Return the matrix with `share` of its tokens, never [CLS] or padding, replaced by [MASK]."""
    hidden = (generator.random(ids.shape) < share) & (ids != PAD_ID) & (ids != START)
    return np.where(hidden, np.int32(MASK), ids)


# ---- training -------------------------------------------------------------------------------------------------------


def build_optimizer(variables: Any, steps: int, rate: float, weight_decay: float) -> keras.optimizers.Optimizer:
    """Return AdamW with a tenth of the steps of warm-up and a cosine down to 0; only matrices decay."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=rate, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, beta_2=0.98, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
    optimizer.build(variables)
    return optimizer


def pretrain(
    encoder: keras.Model, tokenizer: Tokenizer, domain: Sequence[str], general: Sequence[str], settings: Settings
) -> None:
    """Teach `encoder` to fill in masked words of the training questions and of general text (BERT's first task).

    Of the chosen tokens 80 % become [MASK], 10 % a random token and 10 % stay. The prediction reads the token embedding
    backwards, so it costs one bias and no matrix.
    """
    generator = np.random.default_rng(settings.seed)
    texts = [*domain] * settings.domain_repeats + [*general]
    embedding = encoder.get_layer("embedding").token_embedding.embeddings
    bias = keras.Variable(np.zeros(settings.vocabulary_size, np.float32), name="bias")
    variables = [*encoder.trainable_variables, bias]
    steps = settings.pretrain_epochs * math.ceil(len(texts) / settings.pretrain_batch)
    optimizer = build_optimizer(variables, steps, settings.pretrain_rate, 0.01)

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[
            tf.TensorSpec((None, None), tf.int32),
            tf.TensorSpec((None, 2), tf.int64),
            tf.TensorSpec((None,), tf.int32),
        ]
    )
    def step(corrupted: Any, places: Any, answers: Any) -> Any:
        with tf.GradientTape() as tape:
            chosen = tf.gather_nd(encoder(corrupted, training=True), places)
            logits = tf.matmul(chosen, embedding.value, transpose_b=True) + bias.value
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(answers, logits))
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    for epoch in range(settings.pretrain_epochs):
        encoded, losses = encode(tokenizer, texts, settings.merge_dropout), []
        for rows in bucket([len(ids) for ids in encoded], settings.pretrain_batch, generator):
            ids = pad([encoded[row] for row in rows])
            chosen = (generator.random(ids.shape) < settings.masked_share) & (ids > MASK)
            places = np.argwhere(chosen)
            if not len(places):
                continue
            replacement = generator.choice(3, ids.shape, p=(0.8, 0.1, 0.1))
            corrupted = np.where(chosen & (replacement == 0), np.int32(MASK), ids)
            random_ids = generator.integers(MASK + 1, settings.vocabulary_size, ids.shape, np.int32)
            corrupted = np.where(chosen & (replacement == 1), random_ids, corrupted)
            losses.append(step(corrupted, places, ids[chosen]))
        print(f"pretraining epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)


def finetune(
    classifier: keras.Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[int],
    settings: Settings,
    *,
    teachers: Sequence[keras.Model] = (),
    report: Callable[[], float] | None = None,
) -> None:
    """Train `classifier` in place on labelled texts and leave the moving average of its weights in it.

    Each epoch sees other spellings (BPE-dropout) and other hidden words of the same questions. Rare classes are not
    forgotten: the log of each class's frequency is added to its logit while training only (logit adjustment, Menon et
    al. 2021), so that the plain logits treat all classes alike, as the test set does. Where there are `teachers`,
    the target is mostly their average answer to the same batch, hidden words included.
    """
    generator = np.random.default_rng(settings.seed)
    classes = classifier.output.shape[-1]
    targets = np.eye(classes, dtype=np.float32)[np.asarray(labels)]
    prior = settings.balance * np.log(targets.mean(0) + 1e-9).astype(np.float32)
    targets = (1 - settings.label_smoothing) * targets + settings.label_smoothing / classes
    variables = classifier.trainable_variables
    steps = settings.epochs * math.ceil(len(texts) / settings.batch)
    optimizer = build_optimizer(variables, steps, settings.rate, settings.weight_decay)
    averages = [tf.Variable(variable.value) for variable in variables]

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, classes), tf.float32)]
    )
    def step(ids: Any, target: Any) -> Any:
        if teachers:
            answers = [tf.nn.softmax(teacher(ids, training=False) + prior) for teacher in teachers]
            target = (1 - settings.distillation) * target + settings.distillation * sum(answers) / len(answers)
        with tf.GradientTape() as tape:
            logits = classifier(ids, training=True) + prior
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, logits))
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        for average, variable in zip(averages, variables, strict=True):
            average.assign(settings.ema * average + (1 - settings.ema) * variable.value)
        return loss

    for epoch in range(settings.epochs):
        encoded, losses = encode(tokenizer, texts, settings.merge_dropout), []
        for rows in bucket([len(ids) for ids in encoded], settings.batch, generator):
            ids = hide_tokens(pad([encoded[row] for row in rows]), settings.token_dropout, generator)
            losses.append(step(ids, targets[rows]))
        note = f", accuracy {report():.4f}" if report and (epoch + 1) % 5 == 0 else ""
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}{note}", flush=True)
    for average, variable in zip(averages, variables, strict=True):
        variable.assign(average)


def predict(classifier: keras.Model, tokenizer: Tokenizer, texts: Sequence[str]) -> Floats:
    """Return the logits ``(len(texts), classes)``."""
    encoded = encode(tokenizer, texts)
    order = np.argsort([len(ids) for ids in encoded])
    logits = np.zeros((len(texts), classifier.output.shape[-1]), np.float32)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        logits[rows] = classifier(pad([encoded[row] for row in rows]), training=False).numpy()
    return logits


def train(
    texts: Sequence[str],
    labels: Sequence[int],
    classes: int,
    settings: Settings,
    *,
    domain: Sequence[str],
    general: Sequence[str],
    kept: Path | None = None,
    prefix: str = "",
    report: Callable[[keras.Model, Tokenizer], float] | None = None,
) -> tuple[keras.Model, Tokenizer, dict[str, int]]:
    """Return a classifier trained on `texts` after pretraining, its tokenizer, and the seconds each stage took.

    Several teachers start from the same pretrained encoder, each with its own seed; the classifier returned starts
    there too and learns their average answer beside the labels (distillation, Hinton et al. 2015).

    Args:
        texts: The training questions.
        labels: The class of each, in [0, classes).
        classes: How many classes there are.
        settings: What shapes the run.
        domain: Questions to train the tokenizer and pretrain on, without labels.
        general: Sentences of any kind for the same; may be empty.
        kept: A folder that keeps every finished stage; a stage it already has is read instead of trained.
        prefix: Starts the names of the stages that `texts` shape.
        report: Measures a classifier every fifth epoch.
    """
    seconds: dict[str, int] = {}
    seconds_path = kept / "seconds.json" if kept else None
    kept_seconds: dict[str, int] = {}
    if seconds_path and seconds_path.exists():
        kept_seconds = json.loads(seconds_path.read_text(encoding="utf-8"))

    def fresh_encoder() -> keras.Model:
        return build_encoder(
            settings.vocabulary_size,
            width=settings.width,
            blocks=settings.blocks,
            heads=settings.heads,
            feed_forward=settings.feed_forward,
            dropout=settings.dropout,
        )

    def load_kept(model: keras.Model, name: str) -> bool:
        path = kept / f"{name}.weights.h5" if kept else None
        if path is None or not path.exists():
            return False
        model.load_weights(path)
        seconds.update({key: value for key, value in kept_seconds.items() if key == name})
        print(f"{name}: read from {path}", flush=True)
        return True

    def keep(model: keras.Model, name: str, started: float) -> None:
        seconds[name] = kept_seconds[name] = round(time.monotonic() - started)
        if kept and seconds_path:
            write_json(seconds_path, kept_seconds)
            model.save_weights(kept / f"{name}.weights.h5")

    tokenizer_path = kept / "tokenizer.json" if kept else None
    if tokenizer_path and tokenizer_path.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        tokenizer = train_tokenizer([*domain] * 10 + [*general], settings.vocabulary_size)
        if tokenizer_path:
            tokenizer_path.parent.mkdir(parents=True, exist_ok=True)
            tokenizer.save(str(tokenizer_path))

    pretrained = fresh_encoder()
    if not load_kept(pretrained, "encoder"):
        started = time.monotonic()
        pretrain(pretrained, tokenizer, domain, general, settings)
        keep(pretrained, "encoder", started)

    def train_one(number: int, name: str, epochs: int, teachers: Sequence[keras.Model]) -> keras.Model:
        encoder = fresh_encoder()
        encoder.set_weights(pretrained.get_weights())
        classifier = build_classifier(encoder, classes, dropout=settings.classifier_dropout)
        if teachers or not load_kept(classifier, name):
            print(f"{name}:", flush=True)
            started = time.monotonic()
            own = replace(settings, seed=settings.seed + number, epochs=epochs)
            measure = functools.partial(report, classifier, tokenizer) if report else None
            finetune(classifier, tokenizer, texts, labels, own, teachers=teachers, report=measure)
            keep(classifier, name, started)
        return classifier

    teachers = [
        train_one(number, f"{prefix}teacher_{number}", settings.teacher_epochs, ())
        for number in range(settings.teachers)
    ]
    return train_one(settings.teachers, f"{prefix}classifier", settings.epochs, teachers), tokenizer, seconds


# ---- the run --------------------------------------------------------------------------------------------------------


def accuracy(logits: Floats, labels: Sequence[int]) -> float:
    """Return the share of rows whose largest logit is the label's, in [0, 1]."""
    return float(np.mean(logits.argmax(-1) == np.asarray(labels)))


def balanced_accuracy(logits: Floats, labels: Sequence[int]) -> float:
    """Return the accuracy averaged over classes, as the test set with its 40 questions per class measures it."""
    right, truth = logits.argmax(-1) == np.asarray(labels), np.asarray(labels)
    return float(np.mean([right[truth == label].mean() for label in np.unique(truth)]))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` by renaming a finished file into place."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pretrain-text", type=Path, help="general English, one sentence a line, up to the first tab")
    parser.add_argument("--stages", type=Path, help="folder that keeps finished stages, to go on from there")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: this one)")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier model")
    parser.add_argument("--hold-out", action="store_true", help="measure on a tenth of the training questions")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="of the classifier")
    parser.add_argument("--teachers", type=int, default=defaults.teachers)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for TensorFlow")
    arguments = parser.parse_args()
    if not arguments.hold_out and not arguments.force and (arguments.output / "intents.keras").exists():
        parser.error(f"{arguments.output / 'intents.keras'} exists. Choose another --output, or say --force.")
    return arguments


def main() -> None:
    """Train, measure once, and write the model with its tokenizer, its labels and the record of the run."""
    arguments = parse_arguments()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    settings = Settings(seed=arguments.seed, epochs=arguments.epochs, teachers=arguments.teachers)
    keras.utils.set_random_seed(settings.seed)

    classes: list[str] = json.loads((HERE / "data" / "categories.json").read_text(encoding="utf-8"))
    texts, labels = read_questions(HERE / "data" / "train.csv", classes)
    general = read_lines(arguments.pretrain_text) if arguments.pretrain_text else []
    arguments.output.mkdir(parents=True, exist_ok=True)
    held_out_path = arguments.output / "held_out.json"
    run = {"settings": asdict(settings), "pretrain_sentences": len(general)}

    # Pretraining never sees the held-out questions, so that runs with and without --hold-out can share its result.
    kept, held = split_questions(labels, HELD_OUT_SHARE, seed=0)
    stages: dict[str, Any] = {"domain": [texts[row] for row in kept], "general": general, "kept": arguments.stages}
    if arguments.hold_out:
        held_texts, held_labels = [texts[row] for row in held], [labels[row] for row in held]
        classifier, tokenizer, _ = train(
            [texts[row] for row in kept],
            [labels[row] for row in kept],
            len(classes),
            settings,
            **stages,
            prefix="held_out_",
            report=lambda model, tokens: balanced_accuracy(predict(model, tokens, held_texts), held_labels),
        )
        logits = predict(classifier, tokenizer, held_texts)
        measured = {
            "questions": len(held),
            "accuracy": round(accuracy(logits, held_labels), 4),
            "balanced_accuracy": round(balanced_accuracy(logits, held_labels), 4),
        }
        write_json(held_out_path, {**run, "held_out": measured})
        print(measured)
        return

    classifier, tokenizer, seconds = train(texts, labels, len(classes), settings, **stages)
    test_texts, test_labels = read_questions(HERE / "data" / "test.csv", classes)
    test_accuracy = accuracy(predict(classifier, tokenizer, test_texts), test_labels)

    partial = arguments.output / "partial.keras"
    classifier.save(partial)
    partial.replace(arguments.output / "intents.keras")
    tokenizer.save(str(arguments.output / "tokenizer.json"))
    (arguments.output / "labels.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    held_out = json.loads(held_out_path.read_text(encoding="utf-8")) if held_out_path.exists() else {}
    record = {
        "test_accuracy": round(test_accuracy, 4),
        "test_questions": len(test_texts),
        # Measured by an earlier run with --hold-out: it counts only where that run had the same settings.
        "held_out": held_out.get("held_out") if {key: held_out.get(key) for key in run} == run else None,
        "classes": len(classes),
        "parameters": classifier.count_params(),
        "keras_bytes": (arguments.output / "intents.keras").stat().st_size,
        **run,
        "wall_s": sum(seconds.values()),
        "stage_wall_s": seconds,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
    }
    write_json(arguments.output / "training.json", record)
    print(f"test accuracy {test_accuracy:.4f}")


if __name__ == "__main__":
    main()
