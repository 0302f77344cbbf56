from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgelm_converters.data import read_dataset, read_labels

from edgelm.errors import InputError


def test_csv_finds_text_and_label_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('category,text\ncard,"Where, is it?"\ncash,Só\n', encoding="utf-8")
    data = read_dataset(path)
    assert data.texts == ("Where, is it?", "Só")
    assert data.labels == ("card", "cash")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"\xef\xbb\xbftext\nhello\n")
    assert read_dataset(path).texts == ("hello",)


def test_tsv_jsonl_and_txt(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("sentence\tlabel\na b\t1\n")
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "x\ny", "label": 3}) + "\n\n")
    (tmp_path / "d.txt").write_text("one\n\ntwo\n")
    assert read_dataset(tmp_path / "d.tsv").labels == ("1",)
    assert read_dataset(tmp_path / "d.jsonl").texts == ("x\ny",)
    assert read_dataset(tmp_path / "d.jsonl").labels == ("3",)
    assert read_dataset(tmp_path / "d.txt").texts == ("one", "two")


def test_npz_with_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), labels=np.array([0, 1, 1]))
    data = read_dataset(tmp_path / "d.npz")
    assert data.arrays is not None
    assert set(data.arrays) == {"x"}
    assert data.labels == ("0", "1", "1")
    assert len(data) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.xlsx", b"", "not a data file that edgelm reads"),
        ("d.csv", b"a,b\n1,2\n", "has the columns a, b"),
        ("d.csv", b"", "has the columns \\(none\\)"),
        ("d.csv", b"text\n", "holds no samples"),
        ("d.csv", b"text,label\nhello\n", "lacks a text or a label in sample 1"),
        ("d.txt", b"\xff\xfe\x00", "not UTF-8 text"),
        ("d.jsonl", b"{\n", "no valid JSON in line 1"),
        ("d.jsonl", b"[1]\n", "no JSON object in line 1"),
        ("d.npz", b"not a zip", "not a plain .npz"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_dataset(tmp_path / "none.csv")
    np.savez(tmp_path / "d.npz", x=np.array([object()]))
    with pytest.raises(InputError, match=r"plain .npz"):
        read_dataset(tmp_path / "d.npz")


def test_labels_as_lines_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a\nb c\n")
    (tmp_path / "l.json").write_text('["a", "é"]')
    assert read_labels(tmp_path / "l.txt") == ("a", "b c")
    assert read_labels(tmp_path / "l.json") == ("a", "é")


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\na\n", "names a twice"), ("\n", "is empty")],
)
def test_labels_must_be_unique_and_there(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "l.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "l.txt")
