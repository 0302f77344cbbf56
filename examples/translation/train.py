"""Train the translator of this folder from nothing: split, tokenizer, model, and its BLEU on what was held out.

    python examples/translation/train.py --pairs spa-eng.zip --stages build/translation --output build/translation

keeps what is needed to go on in `--stages`: after an interruption the same command with `--resume` goes on from the last
checkpoint. It writes `translator.keras`, `tokenizer.json`, `held_out.csv` and `training.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import sacrebleu
import tensorflow as tf
import tokenizers
from data import (  # type: ignore[import-not-found]  # beside this
    Ids,
    batches,
    encode,
    read_held_out,
    read_pairs,
    split_pairs,
    train_tokenizer,
    write_held_out,
)
from model import PAD_ID, build_translator  # type: ignore[import-not-found]
from shrink import halve_weights  # type: ignore[import-not-found]
from tokenizers import Tokenizer
from translate import translate  # type: ignore[import-not-found]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """What shapes the run; `training.json` repeats it.

    Usual values for a model of this size. There is no dropout: the run sees a sentence a handful of times, too few to learn
    it by heart, and drawing the random numbers takes time from learning.
    """

    seed: int = 1
    test_sentences: int = 2000
    validation_sentences: int = 1000
    vocabulary_size: int = 4096
    width: int = 128
    encoder_blocks: int = 3
    decoder_blocks: int = 2
    heads: int = 4
    feed_forward: int = 512
    dropout: float = 0.0
    steps: int = 8000
    warmup_steps: int = 400
    batch_tokens: int = 1024
    joined: float = 0.1
    rate: float = 1.5e-3
    falling: float = 0.3
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    ema: float = 0.998


# ---- training -------------------------------------------------------------------------------------------------------


class Trapezoid(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras ships no types
    """A learning rate that rises, stays, and falls to nothing in a straight line over the last steps.

    Until it falls it does not depend on how long the run will be: a run that is resumed with another `--steps` before
    that is the run that had them from its start.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, step: Any) -> Any:
        """Return the rate at the scalar `step`, a tensor."""
        settings, step = self.settings, tf.cast(step, tf.float32)
        rising = (step + 1) / settings.warmup_steps
        falling = (settings.steps - step) / (settings.falling * settings.steps)
        return settings.rate * tf.clip_by_value(tf.minimum(rising, falling), 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return what shapes the rate."""
        return {"settings": asdict(self.settings)}


def build_optimizer(settings: Settings) -> keras.optimizers.Optimizer:
    """Return AdamW that keeps a moving average of the weights."""
    return keras.optimizers.AdamW(
        Trapezoid(settings),
        weight_decay=settings.weight_decay,
        beta_2=0.98,
        epsilon=1e-9,
        global_clipnorm=1.0,
        use_ema=True,
        ema_momentum=settings.ema,
    )


def smoothed_loss(logits: Any, targets: Any, smoothing: float) -> Any:
    """Return the mean cross-entropy over tokens that are not padding, with `smoothing` spread over the vocabulary.

    Equal to the cross-entropy with ``(1 - smoothing) * one_hot + smoothing / V``, without that ``(B, T, V)`` matrix.
    """
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    right = tf.gather(logits, targets, batch_dims=2)
    losses = cross_entropy + smoothing * (right - tf.reduce_mean(logits, -1))
    real = tf.cast(targets != PAD_ID, losses.dtype)
    return tf.reduce_sum(losses * real) / tf.reduce_sum(real)


class Trainer:
    """The model with its optimizer, at one step of the run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = build_translator(
            settings.vocabulary_size,
            width=settings.width,
            encoder_blocks=settings.encoder_blocks,
            decoder_blocks=settings.decoder_blocks,
            heads=settings.heads,
            feed_forward=settings.feed_forward,
            dropout=settings.dropout,
        )
        self.optimizer = build_optimizer(settings)
        self.optimizer.build(self.model.trainable_variables)
        self.seconds = 0.0
        ids = tf.TensorSpec((None, None), tf.int32)
        self.step = tf.function(self._step, input_signature=[ids, ids])
        self.loss = tf.function(self._loss, input_signature=[ids, ids])

    def _step(self, source: Any, target: Any) -> Any:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model([source, target[:, :-1]], training=True)
            loss = smoothed_loss(logits, target[:, 1:], self.settings.label_smoothing)
        self.optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    def _loss(self, source: Any, target: Any) -> Any:
        return smoothed_loss(self.model([source, target[:, :-1]], training=False), target[:, 1:], 0.0)

    @property
    def steps_done(self) -> int:
        """How many steps the weights have seen."""
        return int(self.optimizer.iterations.numpy())

    def validate(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> float:
        """Return the mean cross-entropy a token, in nats, of the weights as they are."""
        rows = batches(sources, targets, tokens=8192, joined=0.0, generator=np.random.default_rng(0))
        weighed = [(float(self.loss(*batch)), int((batch[1][:, 1:] != PAD_ID).sum())) for batch in rows]
        return sum(loss * count for loss, count in weighed) / sum(count for _, count in weighed)

    def choose(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> dict[str, float]:
        """Leave in the model the better of its last weights and their moving average; return what both measured.

        The average is the better one of a run that has long been level, the last weights are that of a short one.
        """
        last, measured = self.model.get_weights(), {"last": self.validate(sources, targets)}
        self.optimizer.finalize_variable_values(self.model.trainable_variables)
        measured["average"] = self.validate(sources, targets)
        if measured["last"] < measured["average"]:
            self.model.set_weights(last)
        return {name: round(value, 4) for name, value in measured.items()}

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on, the dropout's random state among it, to one file."""
        variables = [*self.model.variables, *self.optimizer.variables]
        partial = path.with_name("partial.npz")
        np.savez(partial, *[variable.numpy() for variable in variables], seconds=self.seconds)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        with np.load(path) as arrays:
            for number, variable in enumerate([*self.model.variables, *self.optimizer.variables]):
                variable.assign(arrays[f"arr_{number}"])
            self.seconds = float(arrays["seconds"])


def train(
    trainer: Trainer,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
    validation: tuple[Sequence[Ids], Sequence[Ids]],
    checkpoint: Path,
    *,
    checkpoint_s: float = 300.0,
) -> None:
    """Run the steps that are left of `trainer.settings.steps`, with a checkpoint every `checkpoint_s` seconds.

    The batches depend on the seed and the number of the epoch alone, so that a run that was interrupted sees the same.
    """
    settings, epoch, step = trainer.settings, 0, 0
    done = trainer.steps_done
    saved, losses = time.monotonic(), []
    while step < settings.steps:
        generator = np.random.default_rng([settings.seed, epoch])
        for batch in batches(
            sources, targets, tokens=settings.batch_tokens, joined=settings.joined, generator=generator
        ):
            step += 1
            if step <= done:
                continue
            started = time.monotonic()
            losses.append(float(trainer.step(*batch)))
            trainer.seconds += time.monotonic() - started
            if step % 100 == 0:
                print(f"step {step}: loss {np.mean(losses):.3f}, {trainer.seconds:.0f} s", flush=True)
                losses = []
            if step == settings.steps or time.monotonic() - saved > checkpoint_s:
                trainer.save(checkpoint)
                saved = time.monotonic()
            if step == settings.steps:
                break
        epoch += 1
        if step > done:
            print(f"epoch {epoch}: validation {trainer.validate(*validation):.3f} nats a token", flush=True)


# ---- the run --------------------------------------------------------------------------------------------------------


def measure(model: keras.Model, tokenizer: Tokenizer, held_out: dict[str, list[str]]) -> dict[str, Any]:
    """Return BLEU and chrF of greedy translations against all translations of each sentence, by sacrebleu."""
    hypotheses = translate(model, tokenizer, list(held_out))
    most = max(map(len, held_out.values()))
    # sacrebleu takes the first references of all sentences, then the second ones, with None where there is none.
    references = [[row[place] if place < len(row) else None for row in held_out.values()] for place in range(most)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    return {
        "sentences": len(held_out),
        "references": sum(map(len, held_out.values())),
        "bleu": round(bleu.corpus_score(hypotheses, references).score, 2),
        "chrf": round(chrf.corpus_score(hypotheses, references).score, 2),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=Path, required=True, help="spa-eng.zip of Keras's translation tutorial")
    parser.add_argument("--stages", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: this one)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --stages")
    parser.add_argument("--finish", action="store_true", help="train no more: ship the checkpoint in --stages")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier model")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for TensorFlow")
    arguments = parser.parse_args()
    arguments.resume |= arguments.finish
    checkpoint = arguments.stages / "checkpoint.npz"
    if not arguments.force and (arguments.output / "translator.keras").exists():
        parser.error(f"{arguments.output / 'translator.keras'} exists. Choose another --output, or say --force.")
    if arguments.resume and not checkpoint.exists():
        parser.error(f"{checkpoint} does not exist: there is nothing to go on from. Leave --resume out.")
    if checkpoint.exists() and not arguments.resume:
        parser.error(f"{checkpoint} exists. Say --resume to go on from it, or choose another --stages.")
    return arguments


def main() -> None:
    """Train, measure once, and write the model with its tokenizer, what was held out, and the record of the run."""
    arguments = parse_arguments()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    settings = Settings(seed=arguments.seed, steps=arguments.steps)
    keras.utils.set_random_seed(settings.seed)
    arguments.stages.mkdir(parents=True, exist_ok=True)
    arguments.output.mkdir(parents=True, exist_ok=True)

    pairs = read_pairs(arguments.pairs)
    trained_on, validation, test = split_pairs(
        pairs, test=settings.test_sentences, validation=settings.validation_sentences, seed=settings.seed
    )
    tokenizer_path = arguments.stages / "tokenizer.json"
    if not tokenizer_path.exists():
        texts = [text for pair in trained_on for text in pair]
        train_tokenizer(texts, settings.vocabulary_size).save(str(tokenizer_path))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    sources, targets = encode(tokenizer, trained_on)
    print(f"{len(sources)} of {len(trained_on)} pairs, {sum(map(len, targets))} target tokens an epoch", flush=True)

    trainer = Trainer(settings)
    checkpoint = arguments.stages / "checkpoint.npz"
    if arguments.resume:
        trainer.load(checkpoint)
        print(f"going on from step {trainer.steps_done}", flush=True)
    if not arguments.finish:
        train(trainer, sources, targets, encode(tokenizer, validation), checkpoint)

    validated = trainer.choose(*encode(tokenizer, validation))
    partial = arguments.output / "partial.keras"
    trainer.model.save(partial)
    halve_weights(partial, arguments.output / "translator.keras")
    partial.unlink()
    tokenizer.save(str(arguments.output / "tokenizer.json"))
    write_held_out(arguments.output / "held_out.csv", test)
    # What is shipped is measured: its weights are rounded to float16, and are float32 again when Keras has read them.
    shipped = keras.saving.load_model(arguments.output / "translator.keras")
    record = {
        "test": measure(shipped, tokenizer, read_held_out(arguments.output / "held_out.csv")),
        "validation_nats_a_token": validated,
        "pairs": {"all": len(pairs), "trained_on": len(sources), "validation": len(validation), "test": len(test)},
        "parameters": shipped.count_params(),
        "keras_bytes": (arguments.output / "translator.keras").stat().st_size,
        "settings": asdict(settings),
        "steps_done": trainer.steps_done,
        "train_wall_s": round(trainer.seconds),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "tokenizers": tokenizers.__version__,
            "sacrebleu": sacrebleu.__version__,
            "numpy": np.__version__,
        },
    }
    partial = arguments.output / "partial.json"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(arguments.output / "training.json")
    print(json.dumps(record["test"]))


if __name__ == "__main__":
    main()
