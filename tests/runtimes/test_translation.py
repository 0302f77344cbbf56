from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import edgelm_runtimes
import numpy as np
import pytest
from bundle_factory import make_byte_tokenizer, make_classifier_bundle, make_generating_bundle, make_piece_tokenizer
from edgelm_runtimes import Session
from edgelm_runtimes.adapters.fake_seq2seq import FakeSeq2SeqProgram
from edgelm_runtimes.translation_settings import resolve_translation
from hypothesis import given, settings
from hypothesis import strategies as st
from translation_factory import make_translating_bundle

from edgelm.bundle import open_bundle
from edgelm.bundle.manifest import AudioRecord
from edgelm.errors import BundleError, ExecutionError, InputError

TOKENIZER = make_byte_tokenizer()
SIZE = TOKENIZER.get_vocab_size()
START, STOP = 0, 1


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def likeliest(token: int) -> Any:
    row = np.zeros(SIZE, np.float32)
    row[token] = 20.0
    return row


def upper(source: list[int], ids: list[int]) -> Any:
    """Answers with the source in capital letters, byte by byte, and stops."""
    text = TOKENIZER.decode([token for token in source if token != STOP]).upper()
    spelled = [TOKENIZER.token_to_id(piece) for piece in _bytes(text)]
    place = len(ids) - 1
    return likeliest(spelled[place] if place < len(spelled) else STOP)


def _bytes(text: str) -> list[str]:
    """Return the byte-level tokens of a text, one a byte."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return list(level.pre_tokenize_str(text)[0][0]) if text else []


def opened(folder: Path, *, clock: Any = None, row_counts: Any = None, scores: Any = upper, **options: Any) -> Session:
    bundle = open_bundle(make_translating_bundle(folder, **options))
    record = bundle.manifest.translation
    assert record is not None
    program = FakeSeq2SeqProgram(
        record.vocabulary_size, record.source_length, record.target_length, row_counts=row_counts, scores=scores
    )
    settings = {} if clock is None else {"clock": clock}
    return Session(bundle, bundle.manifest.artifacts[0], program, **settings)


def program_of(session: Session) -> Any:
    return session._program


def test_a_text_and_what_is_known_of_its_translation(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        result = session.translate("the cash")
        assert result.text == "THE CASH"
        assert result.finish_reason == "stop_token"
        assert len(result.ids) == 8
        assert result.source_tokens == len(TOKENIZER.encode("the cash").ids) + 1
        assert (result.cut_tokens, result.sources) == (0, 1)
        # 20 above the 279 others, nine times: -log(1 + 279 e^-20) each.
        assert result.score == pytest.approx(-np.log1p((SIZE - 1) * np.exp(-20.0)), rel=1e-2)
        assert result.encode_s is not None
        assert result.ttft_s is not None
        assert len(result.token_s) == 7
        assert result.tokenize_s + result.encode_s < result.ttft_s < result.total_s
        assert result.tokens_per_s is not None
        assert program_of(session).calls == [(1, at, 1) for at in range(9)]


def test_a_loaded_bundle_translates(tmp_path: Path) -> None:
    with edgelm_runtimes.load(make_translating_bundle(tmp_path), runtime="fake") as session:
        first, again = session.translate("cash", beams=3), session.translate("cash", beams=3)
        assert first.ids == again.ids
        assert session.facts.runtime == "fake"


def test_several_texts_keep_their_order_and_are_answered_side_by_side(tmp_path: Path) -> None:
    texts = ["the account", "a", "the new cash card", "b c", ""]
    with opened(tmp_path) as session:
        found = session.translate(texts[:4])
        assert [each.text for each in found] == [text.upper() for text in texts[:4]]
        assert [each.sources for each in found] == [4] * 4
        assert {call[0] for call in program_of(session).calls} == {4}
        assert session.translate([]) == []
        with pytest.raises(InputError, match="The text is empty: there is nothing to translate"):
            session.translate(texts)
        # Four beams each: four sources fill the 16 rows of a step, the shortest first.
        many = session.translate([f"{text} x" for text in texts[:4]] * 2, beams=4)
        assert [each.text for each in many] == [f"{text} X".upper() for text in texts[:4]] * 2
        assert {each.sources for each in many} == {4}


@pytest.mark.parametrize("beams", [1, 2])
def test_a_file_of_fixed_rows_answers_one_after_the_other(beams: int, tmp_path: Path) -> None:
    with opened(tmp_path, row_counts=(1, 2)) as session:
        found = session.translate(["the account", "a", "cash"], beams=beams)
        assert [each.text for each in found] == ["THE ACCOUNT", "A", "CASH"]
        assert [each.sources for each in found] == [1, 1, 1]
        with pytest.raises(InputError, match="beams is 4, and this file was made for 1 or 2"):
            session.translate("cash", beams=4)


def test_what_is_drawn_hangs_on_the_seed_alone(tmp_path: Path) -> None:
    with opened(tmp_path, scores=None) as session:
        one = session.translate("cash", temperature=1.0, seed=3)
        several = session.translate(["cash", "a card"], temperature=1.0, seed=3)
        assert several[0].ids == one.ids
        assert session.translate("cash", temperature=1.0, seed=4).ids != one.ids
        assert session.translate("cash", temperature=1.0, top_k=1, seed=4).ids == session.translate("cash").ids


def test_beams_find_what_greed_misses(tmp_path: Path) -> None:
    def scores(source: list[int], ids: list[int]) -> Any:
        row = np.full(SIZE, -30.0, np.float32)
        after = {(START,): {5: 0.6, 6: 0.4}, (START, 5): {7: 0.4, 8: 0.3, 9: 0.3}, (START, 6): {7: 1.0}}
        for token, share in after.get(tuple(ids), {STOP: 1.0}).items():
            row[token] = np.log(share)
        return row

    with opened(tmp_path, scores=scores) as session:
        assert session.translate("cash").ids == (5, 7)
        best = session.translate("cash", beams=2, length_penalty=0.0)
        assert best.ids == (6, 7)
        # The sum of log-probabilities; and their mean over two tokens and the stop.
        assert best.score == pytest.approx(np.log(0.4), abs=1e-6)
        assert session.translate("cash", beams=2).score == pytest.approx(np.log(0.4) / 3, abs=1e-6)


def test_suppressed_tokens_never_come(tmp_path: Path) -> None:
    best = TOKENIZER.token_to_id("A")
    with opened(tmp_path, suppressed_ids=(best,)) as session:
        for beams in (1, 3):
            result = session.translate("a", beams=beams)
            assert best not in result.ids
            assert result.score is not None
            assert np.isfinite(result.score)


def test_what_stands_before_and_after_source_and_answer(tmp_path: Path) -> None:
    seen: list[Any] = []

    def scores(source: list[int], ids: list[int]) -> Any:
        seen.append((list(source), list(ids)))
        return likeliest(9 if len(ids) == 3 else STOP)

    with opened(
        tmp_path, scores=scores, source_prefix=(4, 5), source_suffix=(6,), target_prefix=(7, 8, 3), stop_ids=(2, STOP)
    ) as session:
        assert session.translate([10, 11]).ids == (9,)
        assert seen[0] == ([4, 5, 10, 11, 6], [7, 8, 3])
        assert session.encode("a").ids == [4, 5, *TOKENIZER.encode("a").ids, 6]
        assert program_of(session).calls == [(1, 0, 3), (1, 3, 1)]


def test_an_answer_ends_with_its_tokens_or_its_positions(tmp_path: Path) -> None:
    def endless(source: list[int], ids: list[int]) -> Any:
        return likeliest(9)

    with opened(tmp_path, scores=endless, target_length=10, target_prefix=(0, 3)) as session:
        for beams in (1, 2):
            short, long = (session.translate("a", beams=beams, max_new_tokens=count) for count in (4, None))
            assert (len(short.ids), short.finish_reason) == (4, "length")
            # Positions 0 and 1 are the prefix's; the token after the last position is known too.
            assert (len(long.ids), long.finish_reason) == (9, "length")


def test_a_source_that_is_too_long(tmp_path: Path) -> None:
    seen: list[Any] = []

    def scores(source: list[int], ids: list[int]) -> Any:
        seen.append(list(source))
        return likeliest(STOP)

    with opened(tmp_path, scores=scores, source_length=6, source_prefix=(4,), source_suffix=(5, 6)) as session:
        with pytest.raises(InputError, match=r"The source has 13 tokens, and the model reads 6: .* with cut=True"):
            session.translate(list(range(10, 20)))
        cut = session.translate(list(range(10, 20)), cut=True)
        assert seen == [[4, 10, 11, 12, 5, 6]]
        assert (cut.source_tokens, cut.cut_tokens) == (6, 7)
        assert session.translate([10, 11, 12], cut=True).cut_tokens == 0


def test_answers_in_another_tokenizer(tmp_path: Path) -> None:
    target = make_piece_tokenizer()
    words = [target.token_to_id(piece) for piece in ("▁the", "▁and")]

    def scores(source: list[int], ids: list[int]) -> Any:
        row = np.zeros(target.get_vocab_size(), np.float32)
        row[[*words, 2][len(ids) - 1]] = 9.0
        return row

    with opened(tmp_path, target=target, scores=scores, target_prefix=(1,), stop_ids=(2,)) as session:
        assert session.translate("cash").text == "the and"


def test_a_stream_gives_whole_characters(tmp_path: Path) -> None:
    text = "naïve 😀 漢字"

    def scores(source: list[int], ids: list[int]) -> Any:
        spelled = [TOKENIZER.token_to_id(piece) for piece in _bytes(text)]
        return likeliest([*spelled, STOP][len(ids) - 1])

    with opened(tmp_path, scores=scores) as session:
        stream = session.translate("a", stream=True)
        assert program_of(session).calls == []
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text == text
        assert all(len(piece) >= 1 and "\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
        assert len(pieces) == len(text)
        assert stream.result.finish_reason == "stop_token"


def test_a_stream_that_is_left_half_read(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        stream = session.translate("cash card", stream=True)
        assert next(stream) + next(stream) == "CA"
        # The same thread asks for another one: the first ends with what there is.
        assert session.translate("a").text == "A"
        assert (stream.result.text, stream.result.finish_reason) == ("CA", "cancelled")
        with pytest.raises(ExecutionError, match="This answer was ended"):
            next(stream)
        stream = session.translate("cash", stream=True)
        stream.close()
        assert (stream.result.ids, stream.result.finish_reason, stream.result.score) == ((), "cancelled", None)
        stream = session.translate("cash", stream=True)
        next(stream)
        stream.cancel()
        assert stream.finish().finish_reason == "cancelled"


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        with pytest.raises(InputError, match="A beam search knows its answer at its end alone"):
            session.translate("a", stream=True, beams=2)
        with pytest.raises(InputError, match="stream=True is for one text"):
            session.translate(["a", "b"], stream=True)  # type: ignore[call-overload]


class Slow(FakeSeq2SeqProgram):
    """Reading takes 10 ms, and a step 20."""

    def __init__(self, clock: Clock, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock = clock

    def encode(self, source: Any, lengths: Any, beams: int) -> None:
        self.clock.now += 0.010
        super().encode(source, lengths, beams)

    def forward(self, ids: Any, start: int) -> Any:
        self.clock.now += 0.020
        return super().forward(ids, start)


def slow(folder: Path) -> Session:
    bundle, clock = open_bundle(make_translating_bundle(folder)), Clock()
    program = Slow(clock, SIZE, 32, 24, scores=upper)
    return Session(bundle, bundle.manifest.artifacts[0], program, clock=clock)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_deadline_ends_with_what_there_is_and_in_time(beams: int, tmp_path: Path) -> None:
    with slow(tmp_path) as session:
        result = session.translate("the cash", beams=beams, deadline_ms=95)
        # 10 ms, and four steps of 20; a fifth would end at 110.
        assert (result.text, result.finish_reason) == ("THE ", "deadline")
        assert result.total_s == pytest.approx(0.090)
        assert result.ttft_s == pytest.approx(0.030)
        assert result.token_s == pytest.approx((0.020,) * 3)
        assert session.translate("the cash", beams=beams, deadline_ms=1000).finish_reason == "stop_token"


def test_a_deadline_is_for_all_texts_of_a_call(tmp_path: Path) -> None:
    with slow(tmp_path) as session:
        short, long = session.translate(["the cash card", "a"], deadline_ms=75)[::-1]
        assert (short.text, short.finish_reason) == ("A", "stop_token")
        assert (long.text, long.finish_reason) == ("THE", "deadline")
        # 10 ms of reading and 20 of a first step are known by now: 12 leave time for neither.
        late = session.translate(["the cash"] * 20, deadline_ms=12)
        assert {each.finish_reason for each in late} == {"deadline"}
        assert all(each.ids == () and each.score is None and each.ttft_s is None for each in late)
        assert late[0].total_s < 0.012


def test_several_threads_are_answered_one_after_the_other(tmp_path: Path) -> None:
    found: dict[int, str] = {}
    with opened(tmp_path) as session:

        def ask(index: int) -> None:
            found[index] = session.translate("cash " + "abc"[index], beams=1 + index).text

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == {0: "CASH A", 1: "CASH B", 2: "CASH C"}


def test_frames_for_a_model_that_hears(tmp_path: Path) -> None:
    audio = AudioRecord(16000, 400, 160, 5, 1)
    seen: list[Any] = []

    def scores(source: Any, ids: list[int]) -> Any:
        seen.append(source)
        return likeliest(STOP)

    with opened(tmp_path, audio=audio, scores=scores) as session:
        frames = np.arange(40, dtype=np.float32).reshape(8, 5)
        result = session.translate(frames)
        assert (result.source_tokens, result.finish_reason) == (8, "stop_token")
        np.testing.assert_array_equal(seen[0], frames)
        for bad in ("a text", frames[:, :4], frames[0], frames[:0]):
            with pytest.raises(InputError, match=r"The model hears: give it frames, float32 \(n, 5\)"):
                session.translate(bad)
        with pytest.raises(InputError, match="33 frames, and the model hears 32 at once"):
            session.translate(np.zeros((33, 5), np.float32))
        with pytest.raises(InputError, match="a live translation is of text"):
            session.live_translation()


def test_sources_that_make_no_sense(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        for bad, message in (
            (" ", "The text is empty"),
            (3, "A source is a text or a list of token ids, and int was given"),
            ([3, SIZE], f"with the ids 0 to {SIZE - 1}, and"),
            ([-1], "at least one token"),
            ([["a"]], "A source is a text or a list of token ids"),
        ):
            with pytest.raises(InputError, match=message):
                session.translate(bad)  # type: ignore[call-overload]
    with opened(tmp_path, name="ids", text=False) as session:
        assert session.translate([3, 4], max_new_tokens=2).text == ""
        with pytest.raises(InputError, match="The bundle has no tokenizer"):
            session.translate("a text")


def test_sessions_of_other_models_say_what_to_use(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        for call in (lambda: session.classify("a"), lambda: session.embed("a"), lambda: session.run({})):
            with pytest.raises(InputError, match=r"holds an encoder-decoder\. Use translate\(\)"):
                call()
        with pytest.raises(InputError, match=r"does not generate: its task is 'translate'\. Use translate\(\)"):
            session.generate("a")
    for ask in (lambda: session.translate("a"), lambda: session.live_translation()):
        with pytest.raises(ExecutionError, match="This session was closed"):
            ask()
    with (
        edgelm_runtimes.load(make_classifier_bundle(tmp_path, fake_files=True), runtime="fake") as classifier,
        pytest.raises(
            InputError, match=r"does not translate: its task is 'classify'\. Use classify\(\), embed\(\) or run\(\)"
        ),
    ):
        classifier.translate("a")
    with (
        edgelm_runtimes.load(make_generating_bundle(tmp_path), runtime="fake") as talker,
        pytest.raises(InputError, match=r"its task is 'generate'\. Use generate\(\) or chat\(\)"),
    ):
        talker.live_translation()


def test_bundles_that_do_not_belong_together(tmp_path: Path) -> None:
    bundle = open_bundle(make_translating_bundle(tmp_path))
    artifact = bundle.manifest.artifacts[0]
    with pytest.raises(BundleError, match=r"model\.onnx gives 7 scores a step, and manifest\.json says 280"):
        Session(bundle, artifact, FakeSeq2SeqProgram(7, 32, 24))
    other = open_bundle(make_translating_bundle(tmp_path, name="long", target_prefix=(0,) * 9, target_length=10))
    with pytest.raises(BundleError, match="begin with 9 tokens, and have 8 positions"):
        Session(other, artifact, FakeSeq2SeqProgram(SIZE, 32, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0, and has to be a whole number"),
        ({"beams": True}, "beams is True"),
        ({"beams": 2.0}, "beams is 2.0"),
        ({"beams": 33}, "beams is 33, and has to be at most 32"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"length_penalty": "1"}, "length_penalty is '1', and has to be a number"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"temperature": -1}, "temperature is -1, and has to be 0 or more"),
        ({"top_p": 0.0}, "top_p is 0.0, and has to be"),
        ({"deadline_ms": 0}, "deadline_ms is 0, and has to be more than 0"),
        ({"seed": -1}, "seed is -1"),
        ({"beams": 2, "top_k": 4}, "temperature is 1.0 with 2 beams, which leave nothing to chance"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_translation(20, None, **options)


def test_options_are_filled_in() -> None:
    plain = resolve_translation(20, None)
    assert (plain.beams, plain.length_penalty, plain.max_new_tokens, plain.deadline_s, plain.cut) == (
        1,
        1.0,
        20,
        None,
        False,
    )
    assert plain.sampling.greedy
    assert resolve_translation(20, (1, 4), beams=4, max_new_tokens=99, deadline_ms=250).max_new_tokens == 20
    assert resolve_translation(20, None, top_p=0.9).sampling.temperature == 1.0


# --- text that grows


def by_text(answers: dict[str, str]) -> Any:
    """Return scores of a model that answers texts so, one token a byte; behind other tokens than its own it goes on alike."""

    def scores(source: list[int], ids: list[int]) -> Any:
        said = TOKENIZER.decode([token for token in source if token != STOP])
        spelled = [TOKENIZER.token_to_id(piece) for piece in _bytes(answers[said])]
        place = len(ids) - 1
        return likeliest(spelled[place] if place < len(spelled) else STOP)

    return scores


ANSWERS = {"i": "ich", "i want": "ich will", "i want c": "ich wollte", "i want cash": "ich will Geld"}


def test_what_two_updates_agree_on_is_promised(tmp_path: Path) -> None:
    with opened(tmp_path, scores=by_text(ANSWERS)) as session:
        live = session.live_translation()
        shown = [live.update(text) for text in ANSWERS]
        assert [(each.stable, each.tentative) for each in shown] == [
            ("", "ich"), ("ich", " will"), ("ich w", "ollte"), ("ich w", "ill Geld"),
        ]  # fmt: skip
        result = live.finish()
        assert result.text == "ich will Geld"
        # "ill" was taken back of "ich will", and "ollte" of "ich wollte": 8 of the 13 tokens of the end.
        assert result.normalised_erasure == pytest.approx(8 / 13)
        assert len(result.updates) == len(result.update_s) == 4
        # What was promised is given to the decoder in one call, and not chosen anew.
        assert (1, 0, 1 + 3) in program_of(session).calls
        with pytest.raises(InputError, match="has ended: begin another one"):
            live.update("i want cash now")


def test_all_but_the_last_tokens_can_be_promised(tmp_path: Path) -> None:
    with opened(tmp_path, scores=by_text(ANSWERS)) as session:
        live = session.live_translation(hold=2)
        shown = [live.update(text) for text in ANSWERS]
        # Behind "ich wi", which was promised, "ich wollte" goes on with its last four letters.
        assert [each.stable for each in shown] == ["i", "ich wi", "ich will", "ich will Ge"]
        assert shown[2].tentative == "te"
        everything = session.live_translation(hold=0)
        assert everything.update("i").stable == "ich"
        assert everything.finish("i want").normalised_erasure == 0
        for bad in (-1, 1.5, True):
            with pytest.raises(InputError, match="hold is"):
                session.live_translation(hold=bad)  # type: ignore[arg-type]


def test_nothing_said_and_nothing_new(tmp_path: Path) -> None:
    with opened(tmp_path, scores=by_text(ANSWERS)) as session:
        live = session.live_translation()
        assert live.update("") == live.update("  ")
        live.update("i")
        assert live.update("i").tentative == "ich"
        assert len(program_of(session).calls) == 4  # one translation
        empty = session.live_translation().finish()
        assert (empty.text, empty.ids, empty.normalised_erasure) == ("", (), None)
        whole = session.live_translation().finish("i want cash")
        assert (whole.text, whole.normalised_erasure) == ("ich will Geld", 0)


def test_half_of_a_translation_promises_nothing(tmp_path: Path) -> None:
    with slow(tmp_path) as session:
        live = session.live_translation(deadline_ms=60)
        assert live.update("cash") == edgelm_runtimes.LiveText("", "CA")
        assert live.update("cash now") == edgelm_runtimes.LiveText("", "CA")
        assert live.finish().updates[0].finish_reason == "deadline"


@given(
    words=st.lists(st.sampled_from(["the", "cash", "card", "a", "new", "account"]), min_size=1, max_size=8),
    beams=st.sampled_from([1, 2]),
    hold=st.sampled_from([None, 0, 1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_what_was_promised_is_never_taken_back(
    words: list[str], beams: int, hold: int | None, tmp_path_factory: Any
) -> None:
    # Random scores: every update says something else, also once there are no positions left, and bytes make no characters.
    with opened(tmp_path_factory.mktemp("live"), scores=None, target_length=9, source_length=64) as session:
        live = session.live_translation(hold=hold, beams=beams)
        promised = ""
        for count in range(1, len(words) + 1):
            shown = live.update(" ".join(words[:count]))
            assert shown.stable.startswith(promised)
            promised = shown.stable
        assert live.finish().text.startswith(promised)
