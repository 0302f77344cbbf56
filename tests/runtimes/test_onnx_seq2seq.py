from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.onnx_seq2seq import DECODER_FILE, emit_onnx_seq2seq
from edgelm_converters.spec import TransformerSpec
from edgelm_runtimes.adapters import onnx_seq2seq
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_seq2seq
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from reference import forward
from spec_factory import random_pair, random_seq2seq

from edgelm.errors import ExecutionError, RuntimeUnavailableError

pytest.importorskip("onnxruntime")

TARGET = 20
# float32 sums of 4 layers, as in test_emit_onnx_seq2seq: 6.8e-5 of scores that reach 10.
BOUND = 6.8e-4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "t5": {
        "positions": False, "relative": True, "norm": "rms", "norm_placement": "pre", "final_norm": True, "biases": False,
        "gated": True, "activation": "gelu_tanh", "tied": True, "head_bias": False,
    },
    "whisper": {"bands": 8, "norm_placement": "pre", "final_norm": True, "activation": "gelu", "tied": True},
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cache grow within a few positions."""
    monkeypatch.setattr(onnx_seq2seq, "_FIRST_LENGTH", 4)


def opened(spec: TransformerSpec, folder: Path, recipe: str = "fp32") -> Seq2SeqProgram:
    signatures = emit_onnx_seq2seq(spec, folder, recipe=recipe, target_length=TARGET)
    return open_seq2seq("onnx", folder / DECODER_FILE, signatures, ProgramOptions(threads=1))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Seq2SeqProgram]:
    made = opened(random_seq2seq(), tmp_path)
    yield made
    made.close()


def sources(spec: TransformerSpec, *lengths: int) -> tuple[list[Any], Any, Any]:
    """Return a pair for each source alone, and all of them as one batch, filled up with what is no id."""
    assert spec.source is not None
    pairs = [random_pair(spec, length, TARGET, seed=seed) for seed, length in enumerate(lengths)]
    arrays = [pair[spec.source.input][0] for pair in pairs]
    batch = np.full((len(lengths), max(lengths), *arrays[0].shape[1:]), -7, arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return pairs, batch, np.array(lengths, np.int32)


def scores_of(spec: TransformerSpec, pair: Any, ids: Any) -> Any:
    return forward(spec, {**pair, spec.token_input: ids[None]})[0]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_sources_of_different_lengths_and_their_beams_run_together(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_seq2seq(**options)
    program = opened(spec, tmp_path)
    pairs, batch, lengths = sources(
        spec,
        *((12, 12) if spec.source and spec.source.audio else (12, 5)),
    )
    generator = np.random.default_rng(5)
    for beams in (1, 3):
        program.encode(batch, lengths, beams)
        ids = generator.integers(1, spec.vocabulary_size, (2 * beams, 10)).astype(np.int32)
        wanted = [scores_of(spec, pairs[row // beams], ids[row]) for row in range(2 * beams)]
        # The prefix at once, single tokens with a cache that grows twice, and several at once further on.
        for start, end in ((0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 9), (9, 10)):
            found = program.forward(ids[:, start:end], start)
            assert found.shape == (2 * beams, spec.vocabulary_size)
            np.testing.assert_allclose(found, [row[end - 1] for row in wanted], atol=BOUND)
    program.close()


def test_beams_that_change_places_take_their_cache_along(program: Seq2SeqProgram) -> None:
    spec = random_seq2seq()
    pairs, batch, lengths = sources(spec, 9, 6)
    program.encode(batch, lengths, 3)
    generator = np.random.default_rng(1)
    ids = generator.integers(1, spec.vocabulary_size, (6, 5)).astype(np.int32)
    program.forward(ids, 0)
    for rows in ([1, 1, 0, 5, 3, 4], [0, 2, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5]):
        program.reorder(np.array(rows, np.int32), ids.shape[1])
        new = generator.integers(1, spec.vocabulary_size, (6, 1)).astype(np.int32)
        found = program.forward(new, ids.shape[1])
        ids = np.concatenate([ids[rows], new], axis=1)
        wanted = [scores_of(spec, pairs[row // 3], ids[row])[-1] for row in range(6)]
        np.testing.assert_allclose(found, wanted, atol=BOUND)


def test_going_back_and_reading_again(program: Seq2SeqProgram) -> None:
    spec = random_seq2seq()
    pairs, batch, lengths = sources(spec, 9, 6)
    ids = np.random.default_rng(2).integers(1, spec.vocabulary_size, (1, TARGET)).astype(np.int32)
    for chosen in (0, 1, 0):
        program.encode(batch[chosen : chosen + 1], lengths[chosen : chosen + 1], 1)
        wanted = scores_of(spec, pairs[chosen], ids[0])
        program.forward(ids[:, :7], 0)
        np.testing.assert_allclose(program.forward(ids[:, 7:], 7)[0], wanted[-1], atol=BOUND)
        # Back, with another token from there on.
        other = np.concatenate([ids[:, :3], ids[:, 10:12]], axis=1)
        found = program.forward(other[:, 3:], 3)
        np.testing.assert_allclose(found[0], scores_of(spec, pairs[chosen], other[0])[-1], atol=BOUND)


def test_the_cache_and_the_source_are_not_copied_between_tokens(program: Seq2SeqProgram) -> None:
    spec = random_seq2seq()
    _, batch, lengths = sources(spec, 9)
    program.encode(batch, lengths, 1)
    ids = np.random.default_rng(2).integers(1, spec.vocabulary_size, (1, TARGET)).astype(np.int32)
    inner: Any = program
    seen = []
    for at in range(TARGET):
        program.forward(ids[:, at : at + 1], at)
        seen.append((inner._length, inner._caches[0].ctypes.data))
    assert [length for length, _ in dict.fromkeys(seen)] == [4, 8, 16, 20]
    # A source after it finds the room that there is, as long as it has as many rows.
    program.encode(batch, lengths, 1)
    program.forward(ids[:, :1], 0)
    assert (inner._length, inner._caches[0].ctypes.data) == seen[-1]


def test_what_it_says_of_itself(program: Seq2SeqProgram, tmp_path: Path) -> None:
    assert (program.source_length, program.target_length, program.vocabulary_size) == (32, TARGET, 96)
    assert program.row_counts is None
    facts = program.facts
    assert (facts.runtime, facts.device, facts.threads, facts.delegate) == ("onnx", "cpu", 1, "CPUExecutionProvider")
    spec = random_seq2seq(positions=False, relative=True)
    spec = replace(spec, source=replace(spec.source, max_length=None))  # type: ignore[type-var]
    free = opened(spec, tmp_path)
    assert free.source_length > 1_000_000
    free.close()


def test_calls_that_make_no_sense(program: Seq2SeqProgram) -> None:
    spec = random_seq2seq()
    pairs, batch, lengths = sources(spec, 9, 6)
    ids = np.random.default_rng(0).integers(1, 96, (2, TARGET + 1)).astype(np.int32)
    with pytest.raises(ExecutionError, match=r"for each of 0 rows, int32 \(R, n\), .* read a source first"):
        program.forward(ids, 0)
    for source, counts, beams, message in (
        (batch[0], lengths, 1, r"int32 with 2 axes, .* int32 \[9\] and 1 were given"),
        (batch.astype(np.int64), lengths, 1, r"int64 \[2, 9\]"),
        (batch[:, :0], lengths, 1, r"none of them empty"),
        (batch, lengths, 0, r"at least 1 beam; int32 \[2, 9\] and 0"),
        (batch, lengths[:1], 1, r"lengths \[9\] are not those of 2 sources with 1 to 9 tokens"),
        (batch, np.array([9, 0], np.int32), 1, r"lengths \[9, 0\]"),
        (batch, np.array([10, 3], np.int32), 1, r"lengths \[10, 3\]"),
        (
            np.ones((1, 33), np.int32),
            np.array([33], np.int32),
            1,
            "33 tokens is longer than the 32 that the model takes",
        ),
        (np.full((1, 3), 96, np.int32), np.array([3], np.int32), 1, "onnx failed: .*Gather"),
    ):
        with pytest.raises(ExecutionError, match=message):
            program.encode(source, counts, beams)
    program.encode(batch, lengths, 1)
    floats: Any = ids[:, :3].astype(np.float32)
    calls = (
        (ids[:1, :3], 0, r"for each of 2 rows, int32 \(R, n\), and got int32 \[1, 3\]"),
        (ids[:, :0], 0, r"got int32 \[2, 0\]"),
        (floats, 0, r"got float32"),
        (ids[0, :3], 0, r"got int32 \[3\]"),
        (np.full((2, 1), 96, np.int32), 0, "The token id 96 is not one of the model's 96"),
        (np.full((2, 1), -1, np.int32), 0, "The token id -1 is not"),
        (ids[:, :1], 1, "position 1 was asked for, and those before it are computed up to 0"),
        (ids, 0, "21 positions are more than the 20 of an answer"),
    )
    for tokens, start, message in calls:
        with pytest.raises(ExecutionError, match=message):
            program.forward(tokens, start)
    program.forward(ids[:, :4], 0)
    for rows, length in (([0], 4), ([0, 1], 5)):
        with pytest.raises(ExecutionError, match=r"there are 2 rows with 4 computed"):
            program.reorder(np.array(rows, np.int32), length)
    # None of them touched what was computed.
    found = program.forward(ids[:, 4:5], 4)
    wanted = [scores_of(spec, pairs[row], ids[row, :5])[-1] for row in range(2)]
    np.testing.assert_allclose(found, wanted, atol=BOUND)


def test_every_frame_counts(tmp_path: Path) -> None:
    spec = random_seq2seq(**OPTIONS["whisper"])
    program = opened(spec, tmp_path)
    _, batch, lengths = sources(spec, 12, 8)
    with pytest.raises(ExecutionError, match="Every frame of audio counts: fill up the sound"):
        program.encode(batch, lengths, 1)
    program.close()


@pytest.mark.parametrize("broken", ["_encoder", "_decoder"])
def test_a_run_that_fails_leaves_nothing_to_build_on(program: Seq2SeqProgram, broken: str) -> None:
    class Broken:
        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : the disk is on fire")

    _, batch, lengths = sources(random_seq2seq(), 9)
    ids = np.ones((1, 4), np.int32)
    program.encode(batch, lengths, 1)
    program.forward(ids, 0)
    session = getattr(program, broken)
    setattr(program, broken, Broken())
    again = {"_encoder": lambda: program.encode(batch, lengths, 1), "_decoder": lambda: program.forward(ids[:, :2], 1)}
    with pytest.raises(ExecutionError, match="onnx failed: the disk is on fire"):
        again[broken]()
    setattr(program, broken, session)
    with pytest.raises(ExecutionError, match="0 rows" if broken == "_encoder" else "computed up to 1"):
        program.forward(ids[:, :1], 3)


def test_a_cache_that_finds_no_memory_leaves_the_older_one(
    program: Seq2SeqProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = random_seq2seq()
    pairs, batch, lengths = sources(spec, 9)
    program.encode(batch, lengths, 1)
    ids = np.random.default_rng(0).integers(1, 96, (1, 5)).astype(np.int32)
    program.forward(ids[:, :4], 0)

    def zeros(*arguments: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(onnx_seq2seq.np, "zeros", zeros)
        with pytest.raises(ExecutionError, match=r"no memory for a cache of 8 positions in 1 rows \(4096 bytes\)"):
            program._reserve(5, keep=4)  # type: ignore[attr-defined]
    found = program.forward(ids[:, 3:4], 3)
    np.testing.assert_allclose(found[0], scores_of(spec, pairs[0], ids[0, :4])[-1], atol=BOUND)


def test_a_closed_program_is_not_run(program: Seq2SeqProgram) -> None:
    program.close()
    with pytest.raises(ExecutionError, match="This onnx program was closed"):
        program.forward(np.ones((1, 1), np.int32), 0)
    with pytest.raises(ExecutionError, match="This onnx program was closed"):
        program.encode(np.ones((1, 1), np.int32), np.ones(1, np.int32), 1)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from spec_factory import random_decoder

    signatures = emit_onnx_seq2seq(random_seq2seq(), tmp_path, recipe="fp32", target_length=TARGET)
    file = tmp_path / DECODER_FILE
    with pytest.raises(RuntimeUnavailableError, match="no signature 'encode'"):
        open_seq2seq("onnx", file, signatures[:1], ProgramOptions())
    emit_onnx_seq2seq(random_seq2seq(layers=1), tmp_path, recipe="fp32", target_length=TARGET)
    with pytest.raises(RuntimeUnavailableError, match="do not belong together"):
        open_seq2seq("onnx", file, signatures, ProgramOptions())
    language = emit_onnx_decoder(random_decoder(), tmp_path / "model.onnx", recipe="fp32", context_length=TARGET)
    with pytest.raises(RuntimeUnavailableError, match="no signature 'main'"):
        open_seq2seq("onnx", tmp_path / "model.onnx", language, ProgramOptions())
    (tmp_path / DECODER_FILE).write_bytes(b"nothing")
    emitted = emit_onnx_seq2seq(random_seq2seq(), tmp_path, recipe="fp32", target_length=TARGET)
    (tmp_path / DECODER_FILE).write_bytes(b"nothing")
    with pytest.raises(RuntimeUnavailableError, match=r"onnx does not open decoder\.onnx"):
        open_seq2seq("onnx", file, emitted, ProgramOptions())
