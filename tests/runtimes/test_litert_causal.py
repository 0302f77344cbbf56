from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_runtimes.adapters.litert_causal import plan
from edgelm_runtimes.program import CausalProgram, ProgramOptions
from edgelm_runtimes.registry import open_causal
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError

pytest.importorskip("ai_edge_litert.compiled_model")
tflite_decoder = pytest.importorskip("edgelm_converters.emit.tflite_decoder")
reference = pytest.importorskip("reference")
spec_factory = pytest.importorskip("spec_factory")

CACHES, PREFILL, VERIFY = (16, 32, 64), (4, 8), (4,)
# float32 sums of up to 128 terms, in two layers: as derived in tests/converters/test_emit_tflite_decoder.py.
TOLERANCE = 1e-5
SPEC = spec_factory.random_decoder(vocabulary=90, windows=(None, 9))
IDS = np.random.default_rng(1).integers(0, 90, 64).astype(np.int32)


def _emit(path: Path, spec: Any = SPEC, **options: Any) -> tuple[Signature, ...]:
    settings = {"recipe": "fp32", "caches": CACHES, "prefill": PREFILL, "verify": VERIFY} | options
    signatures: tuple[Signature, ...] = tflite_decoder.emit_tflite_decoder(spec, path, **settings)
    return signatures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Signature, ...]]:
    path = tmp_path_factory.mktemp("model") / "model.tflite"
    return path, _emit(path)


@pytest.fixture
def program(model: tuple[Path, tuple[Signature, ...]]) -> Iterator[CausalProgram]:
    opened = open_causal("litert", *model, ProgramOptions(threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float64]:
    scores: NDArray[np.float64] = reference.forward(SPEC, {"token_ids": IDS[None]})[0]
    return scores


def _agrees(scores: NDArray[np.float32], expected: NDArray[np.float64]) -> bool:
    assert scores.shape == expected.shape
    return bool(np.abs(scores - expected).max() < TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("prompt", [1, 2, 4, 5, 7, 8, 9, 13, 16, 17, 31, 50, 64])
def test_a_prompt_of_any_length(prompt: int, program: CausalProgram, expected: NDArray[np.float64]) -> None:
    assert _agrees(program.forward(IDS[:prompt], 0), expected[prompt - 1])


def test_steps_through_all_caches(program: CausalProgram, expected: NDArray[np.float64]) -> None:
    program.forward(IDS[:3], 0, logits="none")
    for position in range(3, 64):
        assert _agrees(program.forward(IDS[position : position + 1], position), expected[position]), position


@pytest.mark.parametrize("count", [1, 3, 4, 6, 8, 21, 64])
def test_all_scores(count: int, program: CausalProgram, expected: NDArray[np.float64]) -> None:
    assert _agrees(program.forward(IDS[:count], 0, logits="all"), expected[:count])


def test_all_scores_without_a_signature_for_it(tmp_path: Path, expected: NDArray[np.float64]) -> None:
    path = tmp_path / "model.tflite"
    program = open_causal("litert", path, _emit(path, verify=(), caches=(16,)), ProgramOptions(threads=1))
    assert _agrees(program.forward(IDS[:5], 0, logits="all"), expected[:5])


def test_no_scores(program: CausalProgram, expected: NDArray[np.float64]) -> None:
    assert program.forward(IDS[:11], 0, logits="none").shape == (0,)
    assert _agrees(program.forward(IDS[11:12], 11), expected[11])


def test_goes_back(program: CausalProgram, expected: NDArray[np.float64]) -> None:
    program.forward(IDS[:40], 0)
    other = (IDS + 7) % 90
    program.forward(other[20:30], 20)  # another continuation, then the old one again
    assert _agrees(program.forward(IDS[20:33], 20, logits="all"), expected[20:33])
    # What was computed behind the new end counts no more.
    with pytest.raises(ExecutionError, match=r"The position 40 was asked for, and 33 are computed"):
        program.forward(IDS[40:41], 40)


def test_begins_anew_with_the_smallest_cache(program: CausalProgram, expected: NDArray[np.float64]) -> None:
    program.forward(IDS[:60], 0)
    assert _agrees(program.forward(IDS[:6], 0), expected[5])
    assert _agrees(program.forward(IDS[6:20], 6), expected[19])


def test_fills_the_context_to_the_last_position(program: CausalProgram, expected: NDArray[np.float64]) -> None:
    # No call of 4 or 8 fits behind position 60: one would be moved back, over good positions.
    program.forward(IDS[:61], 0)
    assert _agrees(program.forward(IDS[61:], 61, logits="all"), expected[61:])
    assert _agrees(program.forward(IDS[20:25], 20), expected[24])


class _OutOfMemory:
    """A model whose runtime has no memory for another buffer."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def create_input_buffer_by_name(self, signature: str, name: str) -> Any:
        raise RuntimeError(f"Failed to allocate {name} of {signature}")


def test_keeps_its_cache_where_a_longer_one_finds_no_memory(
    program: Any, expected: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    program.forward(IDS[:14], 0)
    with monkeypatch.context() as patch:
        patch.setattr(program, "_model", _OutOfMemory(program._model))
        with pytest.raises(ExecutionError, match="Failed to allocate kv_cache_k_0 of cache_32_decode"):
            program.forward(IDS[14:20], 14)
    assert _agrees(program.forward(IDS[14:16], 14), expected[15])
    assert _agrees(program.forward(IDS[16:20], 16), expected[19])


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"])
def test_every_recipe(recipe: str, tmp_path: Path) -> None:
    from test_emit_tflite_decoder import TOLERANCE as SHARES  # derived there

    spec = spec_factory.random_decoder(width=64, feed_forward=96, vocabulary=100, tied=False, biases=True)
    path = tmp_path / "model.tflite"
    program = open_causal("litert", path, _emit(path, spec, recipe=recipe), ProgramOptions(threads=2))
    expected = reference.forward(spec, {"token_ids": IDS[None]})[0]
    scores = program.forward(IDS[:40], 0, logits="all")
    assert np.abs(scores - expected[:40]).max() < SHARES[recipe] * np.abs(expected).max()
    single = np.stack([program.forward(IDS[i : i + 1], i) for i in range(30, 40)])
    assert np.abs(single - expected[30:40]).max() < SHARES[recipe] * np.abs(expected).max()


def test_learned_positions_up_to_the_last_row(tmp_path: Path) -> None:
    spec = spec_factory.random_decoder(positions=64, norm="layer", gated=False, activation="gelu")
    path = tmp_path / "model.tflite"
    program = open_causal("litert", path, _emit(path, spec), ProgramOptions(threads=1))
    expected = reference.forward(spec, {"token_ids": IDS[None]})[0]
    assert _agrees(program.forward(IDS, 0, logits="all"), expected)


def test_tells_what_runs(program: CausalProgram) -> None:
    assert (program.context_length, program.vocabulary_size) == (64, 90)
    facts = program.facts
    assert (facts.runtime, facts.device, facts.threads, facts.delegate) == ("litert", "cpu", 1, "XNNPACK")


@pytest.mark.parametrize(
    ("ids", "start", "message"),
    [
        (np.array([90], np.int32), 0, r"The id 90 is outside of the vocabulary, 0 to 89"),
        (np.array([4, -1], np.int32), 0, r"The id -1 is outside"),
        (np.array([4], np.int32), 1, r"The position 1 was asked for, and 0 are computed"),
        (np.array([4], np.int32), -1, r"The position -1 was asked for"),
        (np.zeros(65, np.int32), 0, r"65 tokens from the position 0 on do not fit in the context of 64"),
        (np.array([], np.int32), 0, r"takes int32 ids \(n,\) with n >= 1"),
        (np.zeros((1, 2), np.int32), 0, r"not int32 \[1, 2\]"),
        (np.zeros(2, np.int64), 0, r"not int64 \[2\]"),
    ],
)
def test_refuses_what_would_read_or_write_elsewhere(
    ids: NDArray[Any], start: int, message: str, program: CausalProgram
) -> None:
    with pytest.raises(ExecutionError, match=message):
        program.forward(ids, start)


def test_closed(model: tuple[Path, tuple[Signature, ...]]) -> None:
    program = open_causal("litert", *model, ProgramOptions(threads=1))
    program.forward(IDS[:2], 0)
    program.close()
    with pytest.raises(ExecutionError, match="was closed"):
        program.forward(IDS[:2], 0)


def test_refuses_another_files_signatures(model: tuple[Path, tuple[Signature, ...]], tmp_path: Path) -> None:
    path, signatures = model
    options = ProgramOptions(threads=1)
    with pytest.raises(RuntimeUnavailableError, match="has no signature: the manifest and the model"):
        open_causal("litert", path, (), options)
    renamed = tuple(dataclasses.replace(signature, name=f"{signature.name}_x") for signature in signatures)
    with pytest.raises(RuntimeUnavailableError, match="finds no signature"):
        open_causal("litert", path, renamed, options)
    with pytest.raises(RuntimeUnavailableError, match="only with caches of a fixed length"):
        open_causal("litert", path, (dataclasses.replace(signatures[0], cache=None),), options)
    with pytest.raises(RuntimeUnavailableError, match="no signature that decodes with a cache of 16"):
        open_causal("litert", path, tuple(s for s in signatures if s.name != "cache_16_decode"), options)
    _emit(tmp_path / "other.tflite", spec_factory.random_decoder(vocabulary=90, kv_heads=1))
    with pytest.raises(RuntimeUnavailableError, match=r"'kv_cache_k_0' of '.*' is float32 \[1, 1, 16, 8\] in the file"):
        open_causal("litert", tmp_path / "other.tflite", signatures, options)


@given(
    counts=st.sets(st.integers(2, 40), max_size=3),
    tokens=st.integers(0, 200),
    spare=st.integers(0, 50),
    call=st.integers(0, 30),
    step=st.integers(1, 30),
)
def test_a_plan_computes_all_and_stays_inside(counts: set[int], tokens: int, spare: int, call: int, step: int) -> None:
    calls = plan(sorted({1, *counts}), tokens, tokens + spare, call, step)
    assert sum(calls) >= tokens
    assert sum(calls) <= tokens + spare
    assert sum(calls[:-1]) < tokens or not tokens  # no call of padding alone
    assert set(calls) <= {1, *counts}


def test_a_plan_takes_few_calls() -> None:
    assert plan([1, 16, 128], 300, 512, 12, 20) == [128, 128, 16, 16, 16]
    assert plan([1, 16, 128], 120, 512, 12, 20) == [128]
    assert plan([1, 16, 128], 17, 20, 12, 20) == [16, 1]
    assert plan([1, 16, 128], 5, 5, 12, 20) == [1] * 5
