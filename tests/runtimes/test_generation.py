"""Answers of a session, with a program whose scores a test chooses."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import edgelm_runtimes
import numpy as np
import pytest
from bundle_factory import make_byte_tokenizer, make_classifier_bundle, make_generating_bundle, make_piece_tokenizer
from edgelm_runtimes import Session
from edgelm_runtimes.adapters.fake_causal import FakeCausalProgram, Scores, open_causal
from edgelm_runtimes.program import Logits, ProgramOptions
from tokenizers import Tokenizer

from edgelm.bundle import open_bundle
from edgelm.errors import ExecutionError, InputError, RuntimeUnavailableError

END = 1
TOKENIZER = make_byte_tokenizer()
SIZE = TOKENIZER.get_vocab_size()


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowProgram(FakeCausalProgram):
    """Takes a second for a step and a tenth for each token of a prompt, on a test's clock."""

    def __init__(self, *arguments: Any, clock: Clock, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock = clock

    def forward(self, ids: np.ndarray, start: int, *, logits: Logits = "last") -> np.ndarray:
        self.clock.now += 1.0 if ids.size == 1 else 0.1 * ids.size
        return super().forward(ids, start, logits=logits)


def says(text: str, *, after: int = 0, tokenizer: Tokenizer = TOKENIZER, end: int = END) -> Scores:
    """Return scores that make the answer to a prompt of `after` tokens this text, token by token, and then stop."""
    script = [*tokenizer.encode(text, add_special_tokens=False).ids, end]
    size = tokenizer.get_vocab_size()
    return lambda ids: np.eye(size, dtype=np.float32)[script[min(len(ids) - after, len(script) - 1)]]


def counts_up(ids: Sequence[int]) -> np.ndarray:
    """Make the next token one more than the last."""
    return np.eye(SIZE, dtype=np.float32)[2 + (ids[-1] - 1) % (SIZE - 2)]


def make_session(
    folder: Path, scores: Scores | None = None, *, clock: Callable[[], float] | None = None, **options: Any
) -> Session:
    name = f"bundle{len(list(folder.iterdir()))}"
    bundle = open_bundle(make_generating_bundle(folder, name=name, **options))
    generation = bundle.manifest.generation
    assert generation is not None
    size, length = generation.vocabulary_size, generation.context_length
    if isinstance(clock, Clock):
        program: FakeCausalProgram = SlowProgram(size, length, scores=scores, clock=clock)
    else:
        program = FakeCausalProgram(size, length, scores=scores)
    more = {} if clock is None else {"clock": clock}
    return Session(bundle, bundle.manifest.artifacts[0], program, **more)


def calls(session: Session) -> list[tuple[int, int, str]]:
    program = session._program
    assert isinstance(program, FakeCausalProgram)
    return program.calls


class TestAnswer:
    def test_text_as_it_comes_and_all_that_is_told(self, tmp_path: Path) -> None:
        prompt = TOKENIZER.encode("the cash").ids
        text = "naïve café 😀!"
        session = make_session(tmp_path, says(text, after=len(prompt)), clock=Clock())
        answer = session.generate("the cash")
        assert not answer.ended
        with pytest.raises(ExecutionError, match="has not ended"):
            _ = answer.result
        pieces = list(answer)
        result = answer.result
        assert "".join(pieces) == result.text == text
        assert "😀" in pieces
        assert len(pieces) < len(result.ids)  # some tokens are parts of characters
        assert list(result.ids) == TOKENIZER.encode(text).ids
        assert (result.finish_reason, result.stop) == ("stop_token", None)
        assert (result.prompt_tokens, result.cached_tokens, result.prefill_tokens) == (len(prompt), 0, len(prompt))
        assert result.prefill_s == result.ttft_s == pytest.approx(0.1 * len(prompt))
        assert result.token_s == pytest.approx([1.0] * (len(result.ids) - 1))
        assert result.tokens_per_s == pytest.approx(1.0)
        # And the step that gave the stop token.
        assert result.total_s == pytest.approx(0.1 * len(prompt) + len(result.ids))
        assert list(answer) == []

    def test_a_prompt_of_ids(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        assert session.generate([5, 6], max_new_tokens=3).finish().ids == (7, 8, 9)
        assert session.generate(np.array([5, 6]), max_new_tokens=3).finish().ids == (7, 8, 9)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ([], "The prompt has no token"),
            ("", "The prompt has no token"),
            ([SIZE], f"Token 0 of the prompt is {SIZE}, and the model knows the ids 0 to {SIZE - 1}"),
            ([3, -1], "Token 1 of the prompt is -1"),
            ([3, 4.5], "a list of token ids, and list was given"),
            (None, "a list of token ids, and NoneType was given"),
            ("\ud800", "half a surrogate pair"),
            ([3] * 65, "The prompt has 65 tokens, and the model takes 64"),
        ],
    )
    def test_prompts_that_cannot_be_used(self, tmp_path: Path, prompt: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            make_session(tmp_path).generate(prompt)

    def test_a_space_at_the_beginning_of_what_goes_on(self, tmp_path: Path) -> None:
        tokenizer = make_piece_tokenizer()
        after = len(tokenizer.encode("and").ids)
        scores = says("the and", after=after, tokenizer=tokenizer, end=2)
        session = make_session(tmp_path, scores, tokenizer=tokenizer, start_id=1, stop_ids=(2,))
        assert session.generate("and").finish().text == " the and"
        assert session.generate("").finish().prompt_tokens == 1  # the start token alone

    def test_without_a_tokenizer_there_are_ids(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up, text=False)
        result = session.generate([5], max_new_tokens=2).finish()
        assert (result.ids, result.text) == ((6, 7), "")
        with pytest.raises(InputError, match="no tokenizer: give token ids"):
            session.generate("the")
        with pytest.raises(InputError, match="stop can never be met"):
            session.generate([5], stop="x")


class TestEnd:
    def test_stop_string(self, tmp_path: Path) -> None:
        prompt = TOKENIZER.encode("the").ids
        session = make_session(tmp_path, says("a, b, c, and d", after=len(prompt)))
        result = session.generate("the", stop=["c, an", "zzz"]).finish()
        assert (result.text, result.finish_reason, result.stop) == ("a, b, ", "stop_string", "c, an")

    def test_held_back_text_comes_in_the_end(self, tmp_path: Path) -> None:
        prompt = TOKENIZER.encode("the").ids
        session = make_session(tmp_path, says("a, b\nUser", after=len(prompt)))
        answer = session.generate("the", stop="\nUser:")
        assert "".join(answer) == answer.result.text == "a, b\nUser"
        assert answer.result.finish_reason == "stop_token"

    def test_length(self, tmp_path: Path) -> None:
        result = make_session(tmp_path, counts_up).generate([5], max_new_tokens=4).finish()
        assert (result.ids, result.finish_reason) == ((6, 7, 8, 9), "length")

    def test_the_end_of_the_context(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up, context_length=16)
        result = session.generate([5] * 10, max_new_tokens=100).finish()
        # 16 positions hold 10 tokens of the prompt and 6 of the answer; the scores after the last give one more.
        assert (len(result.ids), result.finish_reason) == (7, "context")
        full = session.generate([5] * 16).finish()
        assert (full.ids, full.finish_reason) == ((6,), "context")

    def test_deadline_between_steps(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up, clock=Clock())
        result = session.generate([5] * 10, deadline_ms=4_500).finish()
        # 0.8 s for a chunk of 8 and 0.2 s for the rest, then steps of 1 s: a fourth step would end at 5 s.
        assert (result.ids, result.finish_reason) == ((6, 7, 8, 9), "deadline")
        assert result.total_s == pytest.approx(4.0)

    def test_deadline_amid_the_prompt(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up, clock=Clock())
        result = session.generate([5] * 60, deadline_ms=2_000).finish()
        assert (result.ids, result.text, result.finish_reason) == ((), "", "deadline")
        assert (result.ttft_s, result.prefill_s, result.token_s) == (None, None, ())
        # A chunk of 8 takes 0.8 s: after two of them the third is seen to come too late, once one was measured.
        assert result.prefill_tokens in (16, 24)
        rest = session.generate([5] * 60, max_new_tokens=1).finish()
        assert rest.cached_tokens == result.prefill_tokens  # what was computed is not lost

    def test_cancelling(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        answer = session.generate([40], max_new_tokens=20)
        pieces = [next(answer) for _ in range(3)]
        answer.cancel()
        assert list(answer) == []
        assert answer.result.finish_reason == "cancelled"
        assert answer.result.text == "".join(pieces)

    @pytest.mark.parametrize("read", [0, 2])
    def test_closing(self, tmp_path: Path, read: int) -> None:
        session = make_session(tmp_path, counts_up)
        with session.generate([40], max_new_tokens=20) as answer:
            for _ in range(read):
                next(answer)
        assert (answer.result.finish_reason, len(answer.result.ids)) == ("cancelled", read)
        assert list(answer) == []
        answer.close()

    def test_a_runtime_that_fails(self, tmp_path: Path) -> None:
        def fails(ids: Sequence[int]) -> np.ndarray:
            if len(ids) == 4:
                raise ExecutionError("out of memory")
            return counts_up(ids)

        session = make_session(tmp_path, fails)
        answer = session.generate([40])
        with pytest.raises(ExecutionError, match="out of memory"):
            list(answer)
        assert not answer.ended
        assert session.generate([40], max_new_tokens=2).finish().ids == (41, 42)  # and goes on working


class TestSettings:
    def test_the_bundle_s_advice(self, tmp_path: Path) -> None:
        scores = np.zeros(SIZE, np.float32)
        scores[10:20] = np.arange(10, dtype=np.float32) / 10

        def answers(session: Session, **options: Any) -> set[int]:
            found = [session.generate([5], max_new_tokens=1, seed=seed, **options).finish().ids for seed in range(60)]
            return {ids[0] for ids in found}

        plain = make_session(tmp_path, lambda ids: scores, stop_ids=())
        assert answers(plain) == {19}
        assert answers(plain, top_k=2) == {18, 19}  # who asks for a filter wants chance
        assert len(answers(plain, temperature=1.0)) > 10
        advised = make_session(tmp_path, lambda ids: scores, temperature=0.7, top_k=3, stop_ids=())
        assert answers(advised) == {17, 18, 19}
        assert answers(advised, temperature=0) == {19}
        assert len(answers(advised, top_k=0)) > 10

    def test_a_seed_gives_the_same_answer(self, tmp_path: Path) -> None:
        session = make_session(tmp_path)
        first, second, other = (
            session.generate("the", temperature=1.0, seed=seed, max_new_tokens=30).finish().ids for seed in (3, 3, 4)
        )
        assert first == second != other

    def test_repetition_penalty_counts_prompt_and_answer(self, tmp_path: Path) -> None:
        scores = np.zeros(SIZE, np.float32)
        scores[[10, 11, 12]] = (4.0, 3.0, 2.5)
        session = make_session(tmp_path, lambda ids: scores)
        result = session.generate([10], repetition_penalty=2.0, max_new_tokens=3).finish()
        # 10 is at 2 from the start, 11 at 1.5 once it was said, then 12 at 1.25: 10 is the likeliest again.
        assert result.ids == (11, 12, 10)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens is 0, and has to be a whole number, 1 or more"),
            ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
            ({"temperature": "hot"}, "temperature is 'hot', and has to be a number"),
            ({"top_p": 2.0}, "top_p is 2.0"),
            ({"stop": ""}, "stop holds ''"),
            ({"stop": [3]}, "stop holds 3"),
            ({"deadline_ms": 0}, "deadline_ms is 0, and has to be more than 0"),
            ({"window": "middle"}, "window is 'middle', and has to be 'keep_start', 'keep_end', or how many"),
            ({"window": 33}, "window is 33, .* at most half of the context, 32"),
            ({"speculate": "magic"}, "speculate is 'magic', and has to be 'off', 'prompt-lookup', or a session"),
        ],
    )
    def test_options_that_cannot_be_used(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            make_session(tmp_path).generate("the", **options)

    def test_an_unknown_option_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="temprature"):
            make_session(tmp_path).generate("the", temprature=1)  # type: ignore[call-arg]


class TestCache:
    def test_what_two_prompts_begin_with_is_computed_once(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        first = session.generate([5, 6, 7, 8], max_new_tokens=3).finish()  # 9, 10 and 11, which is not computed
        calls(session).clear()
        second = session.generate([5, 6, 7, 8, *first.ids, 20], max_new_tokens=1).finish()
        assert (second.cached_tokens, second.prefill_tokens) == (6, 2)
        assert calls(session) == [(6, 2, "last")]
        third = session.generate([5, 6, 40], max_new_tokens=1).finish()
        assert (third.cached_tokens, third.prefill_tokens) == (2, 1)

    def test_the_same_prompt_again_computes_its_last_token(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        first, second = (session.generate([5, 6, 7], max_new_tokens=3).finish() for _ in range(2))
        assert first.ids == second.ids
        assert (second.cached_tokens, second.prefill_tokens) == (2, 1)

    def test_answers_do_not_depend_on_what_is_cached(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        used = make_session(tmp_path)
        for _ in range(20):
            prompt = generator.integers(2, 5, size=generator.integers(1, 12)).tolist()
            fresh = make_session(tmp_path)
            assert used.generate(prompt, max_new_tokens=8).finish().ids == (
                fresh.generate(prompt, max_new_tokens=8).finish().ids
            )

    def test_a_prompt_is_computed_in_chunks(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        session.generate([5] * 20, max_new_tokens=1).finish()
        assert calls(session) == [(0, 8, "none"), (8, 8, "none"), (16, 4, "last")]


class TestWindow:
    def test_a_prompt_that_is_too_long(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up, context_length=16, start_id=0)
        prompt = list(range(2, 42))
        for window, kept in (("keep_start", [2, 3, 4, 5]), ("keep_end", [2]), (3, [2, 3, 4])):
            result = session.generate(prompt, max_new_tokens=3, window=window).finish()  # type: ignore[arg-type]
            program = session._program
            assert isinstance(program, FakeCausalProgram)
            seen = program.ids[:14]  # room for two of three tokens: the last one needs none
            assert seen == kept + prompt[-(14 - len(kept)) :]
            assert (result.prompt_tokens, result.left_out_tokens, result.window_moves) == (40, 26, 0)
            assert result.ids == (42, 43, 44)

    def test_an_answer_beyond_the_context(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up, context_length=16)
        result = session.generate([5, 6, 7, 8], max_new_tokens=40, window=2).finish()
        assert result.ids == tuple(range(9, 49))
        assert (result.finish_reason, len(result.token_s)) == ("length", 39)
        # 17 tokens become 2 + 7, so it moves every 8 tokens: at 17 = 4 + 13 and each 8 further up to 4 + 37.
        assert (result.window_moves, result.left_out_tokens) == (4, 32)
        program = session._program
        assert isinstance(program, FakeCausalProgram)
        assert program.ids[:2] == [5, 6]

    @pytest.mark.parametrize("window", [0, 1, "keep_end", "keep_start"])
    def test_the_smallest_context(self, tmp_path: Path, window: Any) -> None:
        session = make_session(tmp_path, counts_up, context_length=2, start_id=0)
        result = session.generate([5, 6, 7], max_new_tokens=10, window=window).finish()
        assert result.ids == tuple(range(8, 18))


class TestThreads:
    def test_a_second_thread_waits(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        answer = session.generate([40], max_new_tokens=10)
        next(answer)
        other = session.generate([50], max_new_tokens=3)
        thread = threading.Thread(target=other.finish)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert answer.finish().ids == tuple(range(41, 51))
        thread.join(30)
        assert other.result.ids == (51, 52, 53)

    def test_many_threads(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        found: dict[int, tuple[int, ...]] = {}

        def ask(start: int) -> None:
            for _ in range(5):
                found[start] = session.generate([start], max_new_tokens=5).finish().ids

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(10, 90, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {start: tuple(range(start + 1, start + 6)) for start in range(10, 90, 10)}

    def test_a_waiting_one_can_be_cancelled(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        answer = session.generate([40])
        next(answer)
        waiting = session.generate([50])
        thread = threading.Thread(target=waiting.finish)
        thread.start()
        waiting.cancel()
        thread.join(30)
        assert (waiting.result.finish_reason, waiting.result.ids) == ("cancelled", ())
        assert next(answer)

    def test_cancelling_from_another_thread(self, tmp_path: Path) -> None:
        started, go = threading.Event(), threading.Event()

        def blocks(ids: Sequence[int]) -> np.ndarray:
            if len(ids) == 3:
                started.set()
                go.wait(30)
            return counts_up(ids)

        session = make_session(tmp_path, blocks)
        answer = session.generate([40])
        thread = threading.Thread(target=answer.finish)
        thread.start()
        assert started.wait(30)
        answer.cancel()
        go.set()
        thread.join(30)
        # The step at hand ends; none is begun.
        assert (answer.result.finish_reason, len(answer.result.ids)) == ("cancelled", 3)

    def test_one_that_was_dropped(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        for _ in session.generate([40]):
            break
        thread = threading.Thread(target=session.generate([50], max_new_tokens=2).finish)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()

    def test_one_that_was_left_half_read(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        left = session.generate([40])
        next(left)
        assert session.generate([50], max_new_tokens=2).finish().ids == (51, 52)
        assert left.result.finish_reason == "cancelled"
        with pytest.raises(ExecutionError, match="was ended, as its session was closed or asked by the same thread"):
            next(left)

    def test_one_whose_thread_has_ended(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        left = session.generate([40])
        thread = threading.Thread(target=next, args=(left,))
        thread.start()
        thread.join(30)
        assert session.generate([50], max_new_tokens=2).finish().ids == (51, 52)
        assert left.result.finish_reason == "cancelled"

    def test_closing_the_session_ends_the_answer(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        left, later = session.generate([40]), session.generate([50])
        next(left)
        session.close()
        assert left.result.finish_reason == "cancelled"
        with pytest.raises(ExecutionError, match="This session was closed"):
            next(later)
        with pytest.raises(ExecutionError, match="This session was closed"):
            session.generate([40])
        session.close()

    @pytest.mark.parametrize("amid", [False, True])
    def test_closing_ends_another_thread_s_answer(self, tmp_path: Path, amid: bool) -> None:
        """Whether it rests half read or is computing: its step ends, and no more is begun."""
        at_work, go, done = threading.Event(), threading.Event(), threading.Event()

        def blocks(ids: Sequence[int]) -> np.ndarray:
            if amid and len(ids) == 3:
                at_work.set()
                go.wait(30)
            return counts_up(ids)

        session = make_session(tmp_path, blocks)
        answer = session.generate([40])

        def read() -> None:
            next(answer)
            if amid:
                with contextlib.suppress(ExecutionError):  # where it was ended between two of its steps
                    answer.finish()
            at_work.set()
            done.wait(30)  # the thread lives on

        reader, closer = threading.Thread(target=read), threading.Thread(target=session.close)
        reader.start()
        assert at_work.wait(30)
        closer.start()
        go.set()
        closer.join(30)
        assert not closer.is_alive()
        done.set()
        reader.join(30)
        assert answer.result.finish_reason == "cancelled"

    def test_nothing_is_kept_alive(self, tmp_path: Path) -> None:
        session = make_session(tmp_path, counts_up)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                next(session.generate([40]))
            found = [thing for thing in gc.get_objects() if isinstance(thing, edgelm_runtimes.Generation)]
            assert found == []
        finally:
            gc.enable()


class TestTask:
    def test_a_classifier_does_not_generate(self, tmp_path: Path) -> None:
        with edgelm_runtimes.load(make_classifier_bundle(tmp_path, fake_files=True), runtime="fake") as session:
            with pytest.raises(InputError, match="does not generate: its task is 'classify'"):
                session.generate("the")
            with pytest.raises(InputError, match="does not generate"):
                session.chat([{"role": "user", "content": "hi"}])

    def test_a_language_model_does_not_classify(self, tmp_path: Path) -> None:
        with edgelm_runtimes.load(make_generating_bundle(tmp_path), runtime="fake") as session:
            for ask in (session.classify, session.embed, session.run):
                with pytest.raises(InputError, match=r"holds a language model. Use generate\(\) or chat\(\)"):
                    ask("the")  # type: ignore[operator]
            encoded = session.encode("the cash " * 50)
            assert not encoded.truncated
            assert len(encoded.ids) > 64
            assert "mean nothing" in session.facts.notes[0]
            assert session.generate("the", max_new_tokens=2).finish().ids


class TestFakeProgram:
    @pytest.mark.parametrize(
        ("ids", "start", "message"),
        [
            ([1], 1, "has computed 0 positions, and was to go on from 1"),
            ([1] * 9, 0, "holds 8 positions, and was given those up to 9"),
            ([10], 0, "knows the ids below 10, and got 10 to 10"),
            ([-1], 0, "knows the ids below 10"),
            ([], 0, "takes int32 ids"),
            ([1], -1, "was to go on from -1"),
        ],
    )
    def test_calls_that_break_the_protocol(self, ids: list[int], start: int, message: str) -> None:
        with pytest.raises(ExecutionError, match=message):
            FakeCausalProgram(10, 8).forward(np.array(ids, np.int32), start)

    def test_scores_depend_on_the_ids_alone(self) -> None:
        ids = np.array([1, 2, 3, 4, 5], np.int32)
        whole, parts = FakeCausalProgram(10, 8), FakeCausalProgram(10, 8)
        rows = whole.forward(ids, 0, logits="all").copy()
        assert rows.shape == (5, 10)
        assert parts.forward(ids[:3], 0, logits="none").shape == (0,)
        np.testing.assert_array_equal(parts.forward(ids[3:], 3), rows[-1])
        np.testing.assert_array_equal(parts.forward(ids[1:3], 1), rows[2])  # going back
        assert parts.ids == [1, 2, 3]
        parts.close()
        with pytest.raises(ExecutionError, match="was closed"):
            parts.forward(ids, 0)

    def test_opening(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeUnavailableError, match="there is no such file"):
            open_causal(tmp_path / "none.tflite", (), ProgramOptions())
        (tmp_path / "model.tflite").write_bytes(b"")
        with pytest.raises(RuntimeUnavailableError, match="no signature"):
            open_causal(tmp_path / "model.tflite", (), ProgramOptions())


def test_a_clock_that_ticks_by_itself(tmp_path: Path) -> None:
    """Times add up whatever the clock does between."""
    ticks = itertools.count()
    result = (
        make_session(tmp_path, counts_up, clock=lambda: float(next(ticks))).generate([5], max_new_tokens=5).finish()
    )
    assert result.ttft_s is not None
    assert result.prefill_s is not None
    assert 0 < result.prefill_s < result.ttft_s < result.ttft_s + sum(result.token_s) <= result.total_s
