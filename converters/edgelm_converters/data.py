"""Reading the user's data: texts or arrays, with labels where there are any.

Formats, by suffix: ``.csv`` and ``.tsv`` with a header, ``.jsonl`` with an object a line, ``.txt`` with a text a line, and
``.npz`` with an array for each input of the model (first axis: samples) and perhaps ``labels``.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InputError

__all__ = ["Dataset", "read_dataset", "read_labels", "thin"]

_TEXT_COLUMNS = ("text", "sentence", "question", "query", "utterance", "review", "source", "t")
_LABEL_COLUMNS = ("label", "category", "intent", "class", "sentiment", "target", "s")


@dataclass(frozen=True)
class Dataset:
    """Samples to check, calibrate or validate with.

    Attributes:
        name: The file's name.
        texts: One a sample; None where the data are arrays.
        arrays: One array an input, first axis the samples; None where the data are texts.
        labels: One a sample: the label's name, or its index as written; of a translation, the text that a text is to become;
            None where there are none.
    """

    name: str
    texts: tuple[str, ...] | None
    arrays: dict[str, NDArray[Any]] | None
    labels: tuple[str, ...] | None

    def __len__(self) -> int:
        if self.texts is not None:
            return len(self.texts)
        return len(next(iter((self.arrays or {}).values())))


def read_dataset(path: Path) -> Dataset:
    """Read a data file.

    Raises:
        InputError: It is missing, of an unknown kind, empty, or has no column that holds texts.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_txt, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is not a data file that edgelm reads: use .csv, .tsv, .jsonl, .txt or .npz.")
    try:
        dataset = reader(path)
    except OSError as error:
        raise InputError(f"The data file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The data file {path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    if not len(dataset):
        raise InputError(f"The data file {path} holds no samples.")
    return dataset


def _read_csv(path: Path) -> Dataset:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            rows = [row for row in reader if any(row.values())]
        except csv.Error as error:
            raise InputError(f"The data file {path} is not valid CSV (line {reader.line_num}: {error}).") from error
        return _from_rows(path, rows, tuple(reader.fieldnames or ()))


def _read_jsonl(path: Path) -> Dataset:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"The data file {path} has no valid JSON in line {number} ({error}).") from error
            if not isinstance(row, dict):
                raise InputError(f"The data file {path} has no JSON object in line {number}.")
            rows.append(row)
    return _from_rows(path, rows, tuple(rows[0]) if rows else ())


def _from_rows(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Dataset:
    def pick(names: Iterable[str]) -> str | None:
        return next((column for name in names for column in columns if column.strip().lower() == name), None)

    text, label = pick(_TEXT_COLUMNS), pick(_LABEL_COLUMNS)
    if text is None:
        raise InputError(
            f"The data file {path} has the columns {', '.join(columns) or '(none)'}: name the one with the texts "
            f"{' or '.join(_TEXT_COLUMNS[:2])}, and the one with the labels {' or '.join(_LABEL_COLUMNS[:2])}."
        )
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(text), str) or (label is not None and row.get(label) is None):
            raise InputError(f"The data file {path} lacks a text or a label in sample {number}.")
    return Dataset(
        name=path.name,
        texts=tuple(str(row[text]) for row in rows),
        arrays=None,
        labels=tuple(str(row[label]) for row in rows) if label is not None else None,
    )


def _read_txt(path: Path) -> Dataset:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return Dataset(path.name, tuple(line for line in lines if line.strip()), None, None)


def _read_npz(path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"The data file {path} is not a plain .npz of arrays ({error}).") from error
    labels = arrays.pop("labels", None)
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not arrays or len(set(counts.values())) != 1:
        raise InputError(
            f"The data file {path} must hold one array an input, all with as many samples; it has {counts}."
        )
    if labels is not None and labels.shape != (next(iter(counts.values())),):
        raise InputError(f"The data file {path} has labels of shape {labels.shape} for {counts} samples.")
    return Dataset(path.name, None, arrays, None if labels is None else tuple(str(label) for label in labels))


def read_labels(path: Path) -> tuple[str, ...]:
    """Read label names in class order: a ``.json`` list, or a text file with one a line.

    Raises:
        InputError: The file is missing, not readable, empty, or names a label twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except OSError as error:
        raise InputError(f"The labels file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"The labels file {path} is not a JSON list or UTF-8 text: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"The labels file {path} must be a JSON list of names, or a text file with a name a line.")
    labels = tuple(name.strip() for name in names if name.strip())
    twice = {name for name in labels if labels.count(name) > 1} if len(set(labels)) < len(labels) else set()
    if not labels or twice:
        why = f"names {', '.join(sorted(twice))} twice" if twice else "is empty"
        raise InputError(
            f"The labels file {path} {why}: it needs one name a class, in the order of the model's outputs."
        )
    return labels


def thin(data: Dataset, count: int) -> Dataset:
    """Return at most `count` samples, evenly spread over the file."""
    if len(data) <= count:
        return data
    rows = np.linspace(0, len(data) - 1, count).astype(int)
    return Dataset(
        data.name,
        tuple(data.texts[row] for row in rows) if data.texts is not None else None,
        {name: array[rows] for name, array in data.arrays.items()} if data.arrays is not None else None,
        tuple(data.labels[row] for row in rows) if data.labels is not None else None,
    )
