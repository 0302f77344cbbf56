from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_seq2seq
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError

pytest.importorskip("ai_edge_litert.compiled_model")
tflite_seq2seq = pytest.importorskip("edgelm_converters.emit.tflite_seq2seq")
reference = pytest.importorskip("reference")
spec_factory = pytest.importorskip("spec_factory")

# float32 sums in four layers: as derived in tests/converters/test_emit_tflite_seq2seq.py.
TOLERANCE = 1e-5
SPEC = spec_factory.random_seq2seq(vocabulary=90, relative=True)
SOURCE = spec_factory.random_pair(SPEC, 32, 1)["source_ids"]
IDS = np.random.default_rng(1).integers(0, 90, (3, 24)).astype(np.int32)
OPTIONS = ProgramOptions(threads=1)


def _emit(path: Path, spec: Any = SPEC, **options: Any) -> tuple[Signature, ...]:
    settings = {"recipe": "fp32", "source_lengths": (8, 16, 32), "target_length": 24, "beams": (1, 3)} | options
    signatures: tuple[Signature, ...] = tflite_seq2seq.emit_tflite_seq2seq(spec, path, **settings)
    return signatures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Signature, ...]]:
    path = tmp_path_factory.mktemp("model") / "model.tflite"
    return path, _emit(path)


@pytest.fixture
def program(model: tuple[Path, tuple[Signature, ...]]) -> Iterator[Seq2SeqProgram]:
    opened = open_seq2seq("litert", *model, OPTIONS)
    yield opened
    opened.close()


def _expected(
    ids: NDArray[np.int32], length: int, spec: Any = SPEC, source: NDArray[Any] = SOURCE
) -> NDArray[np.float64]:
    """Return the scores after each token of each row ``(b, n, V)``, for a source cut to its length."""
    given: dict[str, NDArray[Any]] = {spec.source.input: source[:, :length]}
    if spec.source.mask_input is not None:
        given[spec.source.mask_input] = np.ones((1, length), np.int32)
    scores = [reference.forward(spec, {**given, spec.token_input: row[None]})[0] for row in ids]
    return np.stack(scores)


def _lengths(length: int) -> NDArray[np.int32]:
    return np.array([length], np.int32)


def _agrees(scores: NDArray[np.float32], expected: NDArray[np.float64], tolerance: float = TOLERANCE) -> bool:
    assert scores.shape == expected.shape
    return bool(np.abs(scores - expected).max() < tolerance * np.abs(expected).max())


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 31, 32])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_source_of_any_length(rows: int, length: int, program: Seq2SeqProgram) -> None:
    expected = _expected(IDS[:rows, :4], length)
    program.encode(SOURCE, _lengths(length), rows)  # what stands behind the length is no padding, and does not count
    for position in range(4):
        assert _agrees(program.forward(IDS[:rows, position : position + 1], position), expected[:, position])


@pytest.mark.parametrize("rows", [1, 3])
def test_every_position_of_an_answer(rows: int, program: Seq2SeqProgram) -> None:
    expected = _expected(IDS[:rows], 20)
    program.encode(SOURCE, _lengths(20), rows)
    assert _agrees(program.forward(IDS[:rows, :3], 0), expected[:, 2])
    for position in range(3, 24):
        assert _agrees(program.forward(IDS[:rows, position : position + 1], position), expected[:, position])


def test_rows_go_on_with_each_other(program: Seq2SeqProgram) -> None:
    generator = np.random.default_rng(5)
    program.encode(SOURCE, _lengths(11), 3)
    answers = IDS[:, :1]
    for length in range(1, 20):
        assert _agrees(program.forward(answers[:, -1:], length - 1), _expected(answers, 11)[:, -1]), length
        rows = generator.integers(0, 3, 3).astype(np.int32) if length % 4 else np.arange(3, dtype=np.int32)
        program.reorder(rows, length)
        answers = np.concatenate([answers[rows], generator.integers(0, 90, (3, 1)).astype(np.int32)], axis=1)


def test_goes_back(program: Seq2SeqProgram) -> None:
    program.encode(SOURCE, _lengths(9), 3)
    program.forward(IDS[:, :12], 0)
    program.forward((IDS[:, 5:9] + 7) % 90, 5)  # another continuation, then the old one again
    assert _agrees(program.forward(IDS[:, 5:8], 5), _expected(IDS[:, :8], 9)[:, -1])
    # What was computed behind the new end counts no more, and a reordering cuts what is computed.
    with pytest.raises(ExecutionError, match=r"The position 12 was asked for, and 8 are computed"):
        program.forward(IDS[:, :1], 12)
    program.reorder(np.array([2, 2, 0], np.int32), 4)
    with pytest.raises(ExecutionError, match=r"The position 8 was asked for, and 4 are computed"):
        program.forward(IDS[:, :1], 8)
    mixed = np.concatenate([IDS[[2, 2, 0], :4], IDS[:, 4:6]], axis=1)
    assert _agrees(program.forward(mixed[:, 4:], 4), _expected(mixed, 9)[:, -1])


def test_a_new_source_forgets_the_old_one(program: Seq2SeqProgram) -> None:
    for length, rows in ((30, 3), (6, 1), (6, 3), (14, 1), (30, 1)):
        program.encode(SOURCE, _lengths(length), rows)
        program.forward(IDS[:rows, ::-1][:, :17].copy(), 0)  # fills the caches with another answer
        program.encode(SOURCE[:, ::-1].copy(), _lengths(length), rows)
        with pytest.raises(ExecutionError, match="The position 17 was asked for, and 0 are computed"):
            program.forward(IDS[:rows, :1], 17)
        expected = _expected(IDS[:rows, :5], length, source=SOURCE[:, ::-1])
        assert _agrees(program.forward(IDS[:rows, :5], 0), expected[:, -1])


@pytest.mark.parametrize(
    "options",
    [
        {"source_mask": "input", "source_vocabulary": 40, "norm_placement": "pre", "final_norm": True},
        {"source_mask": "none"},
        {"bands": 6, "activation": "gelu", "norm_placement": "pre"},
    ],
    ids=["mask", "no mask", "audio"],
)
def test_other_kinds_of_sources(options: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_factory.random_seq2seq(**options)
    path = tmp_path / "model.tflite"
    program = open_seq2seq("litert", path, _emit(path, spec), OPTIONS)
    source = spec_factory.random_pair(spec, 32, 1)[spec.source.input]
    for length in (16, 32) if "bands" in options else (11, 16, 32):
        program.encode(source, _lengths(length), 3)
        expected = _expected(IDS[:, :4], length, spec, source)
        assert _agrees(program.forward(IDS[:, :4], 0), expected[:, -1])
    if "bands" in options:
        with pytest.raises(
            ExecutionError, match="hides no padding, so that a source has exactly 8, 16, 32 frames, not 9"
        ):
            program.encode(source, _lengths(9), 3)
        with pytest.raises(ExecutionError, match=r"float32 \[1, n, 6\], not float32 \[1, 32, 5\]"):
            program.encode(source[:, :, :5], _lengths(32), 3)


@pytest.mark.parametrize("recipe", ["fp16", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4b32_afp32"])
def test_every_recipe(recipe: str, tmp_path: Path) -> None:
    from stored import as_stored
    from test_emit_tflite_seq2seq import TOLERANCE as SHARES  # derived there

    # Heads of 16, whose scale moves no rounding, and all rows of the positions, as the weights are stored.
    spec = spec_factory.random_seq2seq(width=128, heads=8, feed_forward=256, vocabulary=90, source_length=40)
    path = tmp_path / "model.tflite"
    signatures = _emit(path, spec, recipe=recipe, source_lengths=(8, 40))
    program = open_seq2seq("litert", path, signatures, ProgramOptions(threads=2))
    stored = as_stored(spec, recipe, "tflite")
    share = SHARES["dynamic" if recipe.startswith("dynamic") else "float32"]
    for length in (8, 21):
        program.encode(SOURCE, _lengths(length), 3)
        expected = _expected(IDS[:, :6], length, stored)
        assert _agrees(program.forward(IDS[:, :6], 0), expected[:, -1], share)


def test_tells_what_runs(program: Seq2SeqProgram) -> None:
    assert (program.source_length, program.target_length, program.vocabulary_size) == (32, 24, 90)
    assert program.row_counts == (1, 3)
    facts = program.facts
    assert (facts.runtime, facts.device, facts.threads, facts.delegate) == ("litert", "cpu", 1, "XNNPACK")


@pytest.mark.parametrize(
    ("source", "length", "beams", "message"),
    [
        (SOURCE, 33, 1, r"A source of 32 cannot have the lengths \[33\]"),
        (SOURCE, 0, 1, r"A source of 32 cannot have the lengths \[0\]"),
        (np.ones((1, 40), np.int32), 33, 1, r"A source of 33 is longer than the 32 that this file reads"),
        (SOURCE, 5, 2, r"answers with 1, 3 rows of a source, not with 2"),
        (np.ones((2, 8), np.int32), 5, 1, r"one source at a time, int32 \[1, n\], not int32 \[2, 8\]"),
        (np.ones((1, 8), np.int64), 5, 1, r"int32 \[1, n\], not int64 \[1, 8\]"),
        (np.ones((1, 8, 2), np.int32), 5, 1, r"int32 \[1, n\], not int32 \[1, 8, 2\]"),
        (np.full((1, 8), 90, np.int32), 5, 1, r"litert failed in 'encode_8'"),
        (np.full((1, 8), -1, np.int32), 5, 1, r"litert failed in 'encode_8'"),
    ],
)
def test_refuses_a_source(source: NDArray[Any], length: int, beams: int, message: str, program: Seq2SeqProgram) -> None:
    with pytest.raises(ExecutionError, match=message):
        program.encode(source, _lengths(length), beams)
    with pytest.raises(ExecutionError, match="No source was read: an answer begins with 'encode'"):
        program.forward(IDS[:1, :1], 0)
    program.encode(SOURCE, _lengths(8), 1)
    assert _agrees(program.forward(IDS[:1, :1], 0), _expected(IDS[:1, :1], 8)[:, 0])


@pytest.mark.parametrize(
    ("ids", "start", "message"),
    [
        (np.full((3, 1), 90, np.int32), 0, r"The id 90 is outside of the vocabulary, 0 to 89"),
        (np.full((3, 1), -1, np.int32), 0, r"The id -1 is outside"),
        (np.ones((3, 1), np.int32), 3, r"The position 3 was asked for, and 2 are computed"),
        (np.ones((3, 1), np.int32), -1, r"The position -1 was asked for"),
        (np.ones((3, 23), np.int32), 2, r"23 tokens from the position 2 on do not fit in the 24 of an answer"),
        (np.ones((3, 0), np.int32), 0, r"take int32 ids \(3, n\) with n >= 1"),
        (np.ones((1, 2), np.int32), 0, r"not int32 \[1, 2\]"),
        (np.ones((3, 2), np.int64), 0, r"not int64 \[3, 2\]"),
    ],
)
def test_refuses_what_would_read_or_write_elsewhere(
    ids: NDArray[Any], start: int, message: str, program: Seq2SeqProgram
) -> None:
    program.encode(SOURCE, _lengths(8), 3)
    program.forward(IDS[:, :2], 0)
    with pytest.raises(ExecutionError, match=message):
        program.forward(ids, start)


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        (np.array([0, 1, 3], np.int32), 2, r"each from 0 to 2, and int32 \[0, 1, 3\] was given"),
        (np.array([0, -1, 2], np.int32), 2, r"each from 0 to 2"),
        (np.array([0, 1], np.int32), 2, r"int32 \(3,\)"),
        (np.array([0, 1, 2]), 2, r"and int64"),
        (np.array([2, 1, 0], np.int32), 3, r"3 positions were to be kept, and 2 are computed"),
    ],
)
def test_refuses_rows(rows: NDArray[Any], length: int, message: str, program: Seq2SeqProgram) -> None:
    program.encode(SOURCE, _lengths(8), 3)
    program.forward(IDS[:, :2], 0)
    with pytest.raises(ExecutionError, match=message):
        program.reorder(rows, length)
    assert _agrees(program.forward(IDS[:, 2:3], 2), _expected(IDS[:, :3], 8)[:, 2])


class _OutOfMemory:
    """A model whose runtime fails in one signature."""

    def __init__(self, model: Any, failing: str) -> None:
        self.model = model
        self.failing = model.get_signature_index(failing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def run_by_index(self, index: int, inputs: Any, outputs: Any) -> None:
        if index == self.failing:
            raise RuntimeError("Failed to allocate")
        self.model.run_by_index(index, inputs, outputs)


@pytest.mark.parametrize("failing", ["encode_8", "decode_8_x3", "reorder_x3"])
def test_answers_nothing_wrong_after_a_failure(failing: str, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> None:
        if failing == "encode_8":
            program.encode(SOURCE, _lengths(7), 3)
        elif failing == "reorder_x3":
            program.reorder(np.array([1, 1, 0], np.int32), 3)
        else:
            program.forward(IDS[:, 3:4], 3)

    program.encode(SOURCE, _lengths(8), 3)
    program.forward(IDS[:, :3], 0)
    with monkeypatch.context() as patch:
        patch.setattr(program, "_model", _OutOfMemory(program._model, failing))
        with pytest.raises(ExecutionError, match="Failed to allocate"):
            call()
    if failing == "decode_8_x3":  # what was computed before is there
        assert _agrees(program.forward(IDS[:, 3:4], 3), _expected(IDS[:, :4], 8)[:, 3])
    else:
        with pytest.raises(ExecutionError, match="No source was read"):
            program.forward(IDS[:, 3:4], 3)


def test_closed(model: tuple[Path, tuple[Signature, ...]]) -> None:
    program = open_seq2seq("litert", *model, OPTIONS)
    program.encode(SOURCE, _lengths(8), 1)
    program.close()
    for call in (
        lambda: program.encode(SOURCE, _lengths(8), 1),
        lambda: program.forward(IDS[:1, :1], 0),
        lambda: program.reorder(np.zeros(1, np.int32), 0),
    ):
        with pytest.raises(ExecutionError, match="was closed"):
            call()


def test_refuses_another_files_signatures(model: tuple[Path, tuple[Signature, ...]], tmp_path: Path) -> None:
    path, signatures = model

    def refused(match: str, given: tuple[Signature, ...], file: Path = path) -> None:
        with pytest.raises(RuntimeUnavailableError, match=match):
            open_seq2seq("litert", file, given, OPTIONS)

    refused("only with signatures that encode", ())
    refused("only with signatures that encode", tuple(s for s in signatures if s.kind != "encode"))
    refused("only with signatures that encode", tuple(s for s in signatures if s.kind != "decode"))
    refused("updated in place", (signatures[0], dataclasses.replace(signatures[1], cache=None)))
    refused("the same numbers of rows", tuple(s for s in signatures if s.name != "decode_16_x3"))
    refused("or cannot reorder them", tuple(s for s in signatures if s.kind != "reorder"))
    refused("finds no signature", tuple(dataclasses.replace(s, name=f"{s.name}_x") for s in signatures))
    _emit(tmp_path / "other.tflite", spec_factory.random_seq2seq(vocabulary=90, relative=True, heads=2))
    refused(r"'source_k_0' of 'encode_8' is float32 \[1, 2, 8, 16\] in the file", signatures, tmp_path / "other.tflite")


def test_other_runtimes_say_what_they_are_for(model: tuple[Path, tuple[Signature, ...]]) -> None:
    with pytest.raises(
        RuntimeUnavailableError, match=r"'tflite' runs no encoder-decoders in this edgelm\. These do: litert, onnx"
    ):
        open_seq2seq("tflite", *model, OPTIONS)
