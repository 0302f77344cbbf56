from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
from edgelm_converters.spec import TransformerSpec
from edgelm_runtimes.adapters import onnx_causal
from edgelm_runtimes.program import CausalProgram, ProgramOptions
from edgelm_runtimes.registry import open_causal
from reference import forward
from spec_factory import random_decoder

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError

pytest.importorskip("onnxruntime")

CONTEXT = 64
# float32 sums of 2 layers, as in test_emit_onnx_decoder: 2.7e-5 of scores that reach 4.
BOUND = 1.1e-4

OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"norm": "layer", "positions": CONTEXT, "biases": True, "gated": False, "activation": "gelu_tanh"},
    "gemma2": {"post_norms": True, "soft_cap": 5.0, "head_soft_cap": 3.0, "windows": (3, None), "token_scale": 5.6},
    "qwen3": {"query_key_norm": True, "head_dim": 16},
    "partial rotary": {"head_dim": 20, "rotary": 6, "kv_heads": 1},
    "own head": {"tied": False, "head_bias": True},
}


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cache grow and calls be cut within a few dozen positions."""
    monkeypatch.setattr(onnx_causal, "_FIRST_LENGTH", 8)
    monkeypatch.setattr(onnx_causal, "_CHUNK", 10)


def emit(spec: TransformerSpec, path: Path, recipe: str = "fp32") -> tuple[Signature, ...]:
    return emit_onnx_decoder(spec, path, recipe=recipe, context_length=CONTEXT)


def opened(spec: TransformerSpec, folder: Path, recipe: str = "fp32") -> CausalProgram:
    path = folder / "model.onnx"
    return open_causal("onnx", path, emit(spec, path, recipe), ProgramOptions(threads=1))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[CausalProgram]:
    made = opened(random_decoder(), tmp_path)
    yield made
    made.close()


def tokens(spec: TransformerSpec, count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, spec.vocabulary_size, count).astype(np.int32)


def wanted(spec: TransformerSpec, ids: Any) -> Any:
    return forward(spec, {spec.token_input: ids[None]})[0]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_way_through_the_cache_gives_the_same_scores(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_decoder(**options)
    program = opened(spec, tmp_path)
    ids = tokens(spec, CONTEXT)
    expected = wanted(spec, ids)
    # One chunk; several, with the cache growing from 8 to 32 within the call.
    np.testing.assert_allclose(program.forward(ids[:7], 0), expected[6], atol=BOUND)
    np.testing.assert_allclose(program.forward(ids[:25], 0, logits="all"), expected[:25], atol=BOUND)
    # Token by token, to the end of the context.
    assert program.forward(ids[:20], 0, logits="none").shape == (0,)
    for at in range(20, CONTEXT):
        np.testing.assert_allclose(program.forward(ids[at : at + 1], at), expected[at], atol=BOUND)
    # Back, with other tokens from there on: what the cache held counts no more.
    other = np.concatenate([ids[:13], tokens(spec, 9, seed=1)])
    np.testing.assert_allclose(program.forward(other[13:], 13, logits="all"), wanted(spec, other)[13:], atol=BOUND)
    np.testing.assert_allclose(program.forward(other[21:], 21, logits="all"), wanted(spec, other)[21:], atol=BOUND)
    program.close()


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"])
def test_a_chunk_is_what_single_tokens_are(recipe: str, tmp_path: Path) -> None:
    spec = random_decoder(width=96, heads=6, feed_forward=128, vocabulary=200)
    program = opened(spec, tmp_path, recipe)
    ids = tokens(spec, 24)
    together = program.forward(ids, 0, logits="all").copy()
    single = np.stack([program.forward(ids[at : at + 1], at).copy() for at in range(len(ids))])
    # Weights are the same, and each row's activations are rounded by themselves: what differs are float32 sums, and an
    # activation on the edge of a step, of which one is 1/127 of its block's largest.
    np.testing.assert_allclose(together, single, atol=BOUND if recipe in ("fp32", "fp16") else 0.05)
    program.close()


def test_the_cache_grows_by_doubling_and_is_not_copied_between(program: CausalProgram) -> None:
    spec = random_decoder()
    ids = tokens(spec, CONTEXT)
    lengths, places = [], []
    inner: Any = program
    for at in range(CONTEXT):
        program.forward(ids[at : at + 1], at, logits="none")
        lengths.append(inner._length)
        places.append(inner._caches[0].ctypes.data)
    assert list(dict.fromkeys(lengths)) == [8, 16, 32, 64]
    assert len(set(places)) == 4


def test_what_it_says_of_itself(program: CausalProgram) -> None:
    assert (program.context_length, program.vocabulary_size) == (CONTEXT, 96)
    facts = program.facts
    assert (facts.runtime, facts.device, facts.threads, facts.delegate) == ("onnx", "cpu", 1, "CPUExecutionProvider")


def test_calls_that_make_no_sense(program: CausalProgram) -> None:
    ids = tokens(random_decoder(), CONTEXT)
    program.forward(ids[:9], 0)
    with pytest.raises(ExecutionError, match=r"The token id 96 is not one of the model's 96: the tokenizer"):
        program.forward(np.array([3, 96], np.int32), 9)
    with pytest.raises(ExecutionError, match=r"The token id -1 is not one"):
        program.forward(np.array([-1], np.int32), 9)
    with pytest.raises(ExecutionError, match=r"position 10 was asked for, and those before it are computed up to 9"):
        program.forward(ids[:1], 10)
    with pytest.raises(ExecutionError, match=r"position -1 was asked for"):
        program.forward(ids[:1], -1)
    with pytest.raises(ExecutionError, match=r"65 positions are more than the model's context of 64"):
        program.forward(ids[:56], 9)
    with pytest.raises(ExecutionError, match=r"at least one token id, int32 \(n,\), and got int32 \[0\]"):
        program.forward(ids[:0], 9)
    with pytest.raises(ExecutionError, match=r"got float32 \[9\]"):
        program.forward(ids[:9].astype(np.float32), 0)  # type: ignore[arg-type]
    with pytest.raises(ExecutionError, match=r"got int32 \[1, 9\]"):
        program.forward(ids[None, :9], 0)
    # None of them touched the cache.
    np.testing.assert_allclose(program.forward(ids[9:10], 9), wanted(random_decoder(), ids[:10])[9], atol=BOUND)


def test_going_back_forgets_what_came_after(program: CausalProgram) -> None:
    ids = tokens(random_decoder(), CONTEXT)
    program.forward(ids[:20], 0)
    program.forward(ids[:5], 0)
    with pytest.raises(ExecutionError, match="computed up to 5"):
        program.forward(ids[20:21], 20)


def test_a_run_that_fails_leaves_nothing_to_build_on(program: CausalProgram) -> None:
    ids = tokens(random_decoder(), CONTEXT)
    program.forward(ids[:20], 0)
    inner: Any = program

    class Broken:
        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : the disk is on fire")

    session, inner._session = inner._session, Broken()
    with pytest.raises(ExecutionError, match="onnx failed: the disk is on fire"):
        program.forward(ids[12:15], 12)
    inner._session = session
    with pytest.raises(ExecutionError, match="computed up to 12"):
        program.forward(ids[15:16], 15)
    np.testing.assert_allclose(program.forward(ids[12:20], 12), wanted(random_decoder(), ids[:20])[19], atol=BOUND)


def test_a_cache_that_finds_no_memory_leaves_the_older_one(
    program: CausalProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokens(random_decoder(), CONTEXT)
    program.forward(ids[:8], 0)
    made: list[int] = []

    def zeros(*arguments: Any) -> Any:
        made.append(1)
        if len(made) == 3:
            raise MemoryError
        return np.empty(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(onnx_causal.np, "zeros", zeros)
        with pytest.raises(ExecutionError, match=r"no memory for a cache of 16 positions \(8192 bytes\)"):
            program.forward(ids[8:9], 8)
    np.testing.assert_allclose(program.forward(ids[7:8], 7), wanted(random_decoder(), ids[:8])[7], atol=BOUND)


def test_a_closed_program_is_not_run(program: CausalProgram) -> None:
    program.close()
    with pytest.raises(ExecutionError, match="This onnx program was closed"):
        program.forward(np.array([1], np.int32), 0)


def test_an_old_runtime_is_refused_where_it_would_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    monkeypatch.setattr("edgelm_runtimes.adapters.onnx_session.version", lambda name: "1.23.2")
    signatures = emit(random_decoder(windows=(3,)), path)
    with pytest.raises(RuntimeUnavailableError, match=r"one position too many: pip install 'onnxruntime>=1\.24'"):
        open_causal("onnx", path, signatures, ProgramOptions())
    open_causal("onnx", path, emit(random_decoder(), path), ProgramOptions()).close()  # no window, no matter


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    from edgelm_converters.emit.onnx import emit_onnx
    from spec_factory import random_spec

    path = tmp_path / "model.onnx"
    encoder = emit_onnx(random_spec(), path, recipe="fp32")
    with pytest.raises(RuntimeUnavailableError, match="was not written by edgelm"):
        open_causal("onnx", path, encoder, ProgramOptions())
    decoder = emit(random_decoder(), tmp_path / "decoder.onnx")
    with pytest.raises(RuntimeUnavailableError, match="do not belong together"):
        open_causal("onnx", path, decoder, ProgramOptions())
    with pytest.raises(RuntimeUnavailableError, match="no signature 'main, main'"):
        open_causal("onnx", tmp_path / "decoder.onnx", decoder * 2, ProgramOptions())
    path.write_bytes(b"nothing")
    with pytest.raises(RuntimeUnavailableError, match=r"onnx does not open model\.onnx"):
        open_causal("onnx", path, decoder, ProgramOptions())
