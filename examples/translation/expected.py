"""Write `expected.csv`: held-out sentences with what the shipped model answers, for a test to repeat.

    python examples/translation/expected.py

It takes the first ones whose every token is clearly ahead of the second best: other machines sum in another order, and may
then not choose between two tokens that are as good as equal.
"""

from __future__ import annotations

import csv
from pathlib import Path

import keras
import numpy as np
from data import read_held_out  # type: ignore[import-not-found]  # beside this
from model import END_ID, START_ID  # type: ignore[import-not-found]
from tokenizers import Tokenizer
from translate import greedy  # type: ignore[import-not-found]

HERE = Path(__file__).parent
SENTENCES = 12
LEAD = 0.05
"""The least distance of the best logit to the second best, a thousand times the rounding of float32 that was seen."""


def main() -> None:
    """Write the file by renaming a finished one into place."""
    model = keras.saving.load_model(HERE / "translator.keras")
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    texts = list(read_held_out(HERE / "held_out.csv"))[: 4 * SENTENCES]
    sources = [np.asarray([*encoding.ids, END_ID], np.int32) for encoding in tokenizer.encode_batch(texts)]
    rows: list[tuple[str, str]] = []
    for text, source, answer in zip(texts, sources, greedy(model, sources), strict=True):
        target = np.asarray([[START_ID, *answer]], np.int32)
        best = np.sort(np.asarray(model([source[None], target])), -1)[..., -2:]
        if len(rows) < SENTENCES and (best[..., 1] - best[..., 0]).min() > LEAD:
            rows.append((text, tokenizer.decode(answer.tolist())))
    partial = HERE / "expected.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("source", "translation"))
        writer.writerows(rows)
    partial.replace(HERE / "expected.csv")


if __name__ == "__main__":
    main()
