"""The sentence pairs: read, split so that no held-out sentence is trained on, and put into batches."""

from __future__ import annotations

import csv
import re
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from model import END_ID, MAX_LENGTH, PAD_ID, START_ID, UNKNOWN_ID  # type: ignore[import-not-found]  # beside this
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

__all__ = [
    "Ids",
    "Pair",
    "batches",
    "encode",
    "pad",
    "read_held_out",
    "read_pairs",
    "split_pairs",
    "train_tokenizer",
    "write_held_out",
]

Ids = npt.NDArray[np.int32]
Pair = tuple[str, str]
"""A sentence in English and one in Spanish."""

SPECIAL_TOKENS = {"[PAD]": PAD_ID, "[START]": START_ID, "[END]": END_ID, "[UNK]": UNKNOWN_ID}


def read_pairs(path: Path) -> list[Pair]:
    """Return the distinct pairs of Keras's `spa-eng.zip`, or of its `spa.txt`: English, a tab, Spanish, in NFC."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            text = archive.read("spa-eng/spa.txt").decode("utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    rows = (unicodedata.normalize("NFC", line).split("\t")[:2] for line in text.splitlines() if "\t" in line)
    return list(dict.fromkeys((source.strip(), target.strip()) for source, target in rows))


def split_pairs(
    pairs: Sequence[Pair], *, test: int, validation: int, seed: int
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Return the pairs to train on, those of `validation` and those of `test` English sentences.

    An English sentence and all its translations are on one side. Sentences that differ in case or punctuation alone
    count as one, so that "Come in!" is not trained on where "Come in." is a test.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(_same(pair[0]), []).append(pair)
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    tests, validations = _take(groups, [names[place] for place in order], test, validation)
    held = {_same(source) for source, _ in (*tests, *validations)}
    return [pair for pair in pairs if _same(pair[0]) not in held], validations, tests


def _take(groups: dict[str, list[Pair]], names: Sequence[str], *counts: int) -> list[list[Pair]]:
    # Of sentences that differ in punctuation alone the first is tested, with its own translations.
    parts, start = [], 0
    for count in counts:
        part = [groups[name] for name in names[start : start + count]]
        parts.append([pair for group in part for pair in group if pair[0] == group[0][0]])
        start += count
    return parts


def _same(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())


def write_held_out(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as CSV with the columns `source` and `target`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("source", "target"))
        writer.writerows(pairs)


def read_held_out(path: Path) -> dict[str, list[str]]:
    """Return source -> its translations, in the order of the file."""
    translations: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            translations.setdefault(row["source"], []).append(row["target"])
    return translations


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """Return a byte-level BPE for both languages: case is kept, every text can be written, nothing is put around it.

    A space is put before the first word, so that a word is the same token at any place, and taken off when decoding.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("’", "'"), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # One token fewer than there are positions: [END] goes behind.
    tokenizer.enable_truncation(MAX_LENGTH - 1)
    return tokenizer


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> tuple[list[Ids], list[Ids]]:
    """Return the sources, each with [END] behind, and the targets between [START] and [END]; long pairs are left out."""
    english = tokenizer.encode_batch([source for source, _ in pairs])
    spanish = tokenizer.encode_batch([target for _, target in pairs])
    sources, targets = [], []
    for source, target in zip(english, spanish, strict=True):
        # The decoder reads the target without its last token, so that a target may be one longer than its positions.
        if len(source.ids) < MAX_LENGTH - 1 and len(target.ids) < MAX_LENGTH - 1:
            sources.append(np.asarray([*source.ids, END_ID], np.int32))
            targets.append(np.asarray([START_ID, *target.ids, END_ID], np.int32))
    return sources, targets


def pad(rows: Sequence[Ids]) -> Ids:
    """Return the rows as one matrix, filled with `PAD_ID` up to the longest."""
    matrix = np.full((len(rows), max(map(len, rows))), PAD_ID, np.int32)
    for row, ids in zip(matrix, rows, strict=True):
        row[: len(ids)] = ids
    return matrix


def batches(
    sources: Sequence[Ids], targets: Sequence[Ids], *, tokens: int, joined: float, generator: np.random.Generator
) -> Iterator[tuple[Ids, Ids]]:
    """Yield the batches of one epoch in random order, each of `tokens` target tokens in rows of about one length.

    Args:
        sources: What `encode` gave.
        targets: What `encode` gave.
        tokens: Rows times the length of the longest, padding included: every batch costs about the same.
        joined: The share of pairs that get another pair behind them. Sentences of the data have 10 tokens on average: so
            positions up to the last are trained, and texts of several sentences.
        generator: Draws all that is random.
    """
    rows = _join(sources, targets, joined, generator)
    lengths = np.asarray([len(target) for _, target in rows])
    # By target, then by source: sorted by target alone, a third of the source is padding.
    order = np.lexsort((generator.random(len(rows)), [len(source) for source, _ in rows], lengths))
    groups: list[list[int]] = [[]]
    longest = 0
    for row in order.tolist():
        longest = max(longest, int(lengths[row]))
        if longest * (len(groups[-1]) + 1) > tokens and groups[-1]:
            groups.append([])
            longest = int(lengths[row])
        groups[-1].append(row)
    for number in generator.permutation(len(groups)):
        chosen = [rows[row] for row in groups[number]]
        yield pad([source for source, _ in chosen]), pad([target for _, target in chosen])


def _join(
    sources: Sequence[Ids], targets: Sequence[Ids], share: float, generator: np.random.Generator
) -> list[tuple[Ids, Ids]]:
    order = generator.permutation(len(sources)).tolist()
    rows: list[tuple[Ids, Ids]] = []
    for row in order:
        source, target = sources[row], targets[row]
        if rows and generator.random() < share:
            before_source, before_target = rows[-1]
            both_source = np.concatenate([before_source[:-1], source])
            both_target = np.concatenate([before_target[:-1], target[1:]])
            if max(len(both_source), len(both_target) - 1) <= MAX_LENGTH:
                rows[-1] = (both_source, both_target)
                continue
        rows.append((source, target))
    return rows
