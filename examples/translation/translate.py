"""Translate with Keras alone: the trained model, greedily, computing everything again for every token.

    python examples/translation/translate.py "Where is the station?"

It is what a converted model is held against, and how the script beside this measures BLEU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data import Ids, pad  # type: ignore[import-not-found]  # beside this
from model import END_ID, MAX_LENGTH, PAD_ID, START_ID  # type: ignore[import-not-found]
from tokenizers import Tokenizer

__all__ = ["greedy", "translate"]

HERE = Path(__file__).parent


def greedy(model: keras.Model, sources: Sequence[Ids], *, max_length: int = MAX_LENGTH, batch: int = 128) -> list[Ids]:
    """Return for each source the likeliest token at every step, until [END], which is left off, as is [START].

    Args:
        model: What `model.build_translator` builds.
        sources: Token ids, each with [END] behind.
        max_length: The most tokens the decoder reads, [START] included: the most tokens of an answer.
        batch: Sources computed at once, those of about one length together; their padding is masked.
    """
    ids = tf.TensorSpec((None, None), tf.int32)

    @tf.function(input_signature=[ids, ids])  # type: ignore[untyped-decorator]
    def choose(source: Any, target: Any) -> Any:
        return tf.argmax(model([source, target], training=False)[:, -1], -1, output_type=tf.int32)

    answers: list[Ids] = [np.zeros(0, np.int32)] * len(sources)
    order = np.argsort([len(source) for source in sources], kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        source = pad([sources[row] for row in rows])
        target = np.full((len(rows), 1), START_ID, np.int32)
        open_rows = np.ones(len(rows), np.bool_)
        while open_rows.any() and target.shape[1] <= max_length:
            chosen = np.where(open_rows, choose(source, target).numpy(), PAD_ID)
            target = np.concatenate([target, chosen[:, None]], axis=1)
            open_rows &= chosen != END_ID
        for row, answer in zip(rows, target[:, 1:], strict=True):
            ends = np.flatnonzero(answer == END_ID)
            answers[row] = answer[: ends[0]] if len(ends) else answer
    return answers


def translate(model: keras.Model, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Return the Spanish of English `texts`; what `tokenizer` cuts off a long one is not translated."""
    sources = [np.asarray([*encoding.ids, END_ID], np.int32) for encoding in tokenizer.encode_batch(list(texts))]
    return list(tokenizer.decode_batch([answer.tolist() for answer in greedy(model, sources)]))


def main() -> None:
    """Translate the command line's sentences, one line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("texts", nargs="+", metavar="SENTENCE")
    parser.add_argument("--folder", type=Path, default=HERE, help="folder of the model (default: this one)")
    arguments = parser.parse_args()
    model = keras.saving.load_model(arguments.folder / "translator.keras")
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    print("\n".join(translate(model, tokenizer, arguments.texts)))


if __name__ == "__main__":
    main()
