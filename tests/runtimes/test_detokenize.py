"""Text that comes token by token, against the whole of it decoded at once."""

from __future__ import annotations

import pytest
from bundle_factory import make_byte_tokenizer, make_piece_tokenizer, make_tokenizer
from edgelm_runtimes.detokenize import Detokenizer
from edgelm_runtimes.stop_text import StopText
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.decoders import DecodeStream

BYTE, PIECE = make_byte_tokenizer(), make_piece_tokenizer()
TOKENIZERS = {"byte": BYTE, "piece": PIECE}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=30)


def stream(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.rest()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="naïve café 😀👩‍👩‍👧 漢字")
@example(text="  two  spaces ")
def test_pieces_are_the_whole_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)  # no half character


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_pieces_are_those_of_the_library_s_own_stream(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    theirs = DecodeStream(skip_special_tokens=True)
    assert stream(tokenizer, ids)[:-1] == [theirs.step(tokenizer, token) or "" for token in ids]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE.get_vocab_size() - 1), max_size=30))
def test_bytes_that_are_no_text_are_replaced_as_python_does(ids: list[int]) -> None:
    special = {0, 1}
    whole = BYTE.decode(ids, skip_special_tokens=True)
    text = "".join(stream(BYTE, ids))
    # What is unfinished at the end is left out; the rest is as if it were decoded at once.
    assert whole.rstrip("\N{REPLACEMENT CHARACTER}") == text.rstrip("\N{REPLACEMENT CHARACTER}")
    assert set(ids) <= special or text or set(whole) <= {"\N{REPLACEMENT CHARACTER}"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, PIECE.get_vocab_size() - 1), max_size=30))
@example([PIECE.token_to_id(token) for token in ("▁the", "<0xC3>", "<0xA9>", "<0xF0>", "h")])
def test_any_ids_give_text(ids: list[int]) -> None:
    """The library's own stream raises an error at some of these."""
    text = "".join(stream(PIECE, ids))
    letters = [character for character in PIECE.decode(ids) if character.isalpha() and character.isascii()]
    shown = [character for character in text if character.isalpha() and character.isascii()]
    # Bytes below 0x80 in a run that is no UTF-8 are replaced in the whole, and may have been shown before.
    assert len(shown) >= len(letters)


def test_the_library_s_own_stream_still_fails() -> None:
    """Why there is one of our own: once this passes, it can go."""
    theirs = DecodeStream(skip_special_tokens=True)
    for token in ("▁the", "<0xC3>", "<0xA9>", "<0xF0>"):
        theirs.step(PIECE, PIECE.token_to_id(token))
    with pytest.raises(Exception, match="Invalid prefix"):
        theirs.step(PIECE, PIECE.token_to_id("h"))


def test_a_space_before_the_first_word_is_kept_where_the_text_goes_on() -> None:
    prompt = PIECE.encode("and").ids
    answer = [PIECE.token_to_id("▁the"), PIECE.token_to_id("▁and")]
    assert stream(PIECE, answer, prompt) == [" the", " and", ""]
    assert stream(PIECE, answer) == ["the", " and", ""]
    spaces = [PIECE.token_to_id("▁"), PIECE.token_to_id("▁the")]
    assert "".join(stream(PIECE, spaces)) == PIECE.decode(spaces) == " the"


def test_an_emoji_comes_with_its_last_byte() -> None:
    ids = [PIECE.token_to_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    assert stream(PIECE, ids) == ["", "", "", "😀", ""]


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    ids = [PIECE.token_to_id(token) for token in ("▁the", "<0xF0>", "<0x9F>")]
    assert stream(PIECE, ids) == ["the", "", "", ""]


def test_special_tokens_are_left_out_and_change_nothing() -> None:
    ids = [PIECE.token_to_id(token) for token in ("▁the", "</s>", "▁and")]
    assert stream(PIECE, ids) == ["the", "", " and", ""]


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Metaspace(), decoders.BPEDecoder("</w>")])
def test_other_decoders(decoder: object) -> None:
    tokenizer = make_tokenizer()
    tokenizer.decoder = decoder
    ids = tokenizer.encode("where is my card , please", add_special_tokens=False).ids
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_the_cost_of_a_token_does_not_grow() -> None:
    """The decoder sees a few ids at a time, however long the text, and garbage too."""
    seen: list[int] = []

    class Counting:
        def get_added_tokens_decoder(self) -> dict[int, object]:
            return {}

        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            seen.append(len(ids))
            return str(BYTE.decode(ids, skip_special_tokens=skip_special_tokens))

    garbage = BYTE.token_to_id("ð")
    stream(Counting(), [garbage, 40, 41] * 200 + [garbage] * 600)  # type: ignore[arg-type]
    assert max(seen) <= 10


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_over_pieces(pieces: list[str], stops: list[str]) -> None:
    filter_ = StopText(stops)
    shown = [filter_.push(piece) for piece in pieces]
    shown.append(filter_.rest())
    whole = "".join(pieces)
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert "".join(shown) == whole
        assert filter_.found is None
        return
    assert filter_.found in stops
    text = "".join(shown)
    assert whole.startswith(text + filter_.found)
    assert not any(stop in text for stop in stops)


def test_text_is_held_back_no_longer_than_needed() -> None:
    filter_ = StopText(["\nUser:"])
    assert [filter_.push(piece) for piece in ("Hi\nUs", "ual", "\nUser", ": more")] == ["Hi", "\nUsual", "", ""]
    assert filter_.found == "\nUser:"
