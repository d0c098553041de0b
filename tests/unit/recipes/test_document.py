from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from recipes.document import Document, cut


def test_a_short_text_stays_whole() -> None:
    assert list(cut("One.\n\nTwo.", 20)) == ["One.\n\nTwo."]


def test_paragraphs_are_kept_together_as_far_as_they_fit() -> None:
    assert list(cut("aaaa\n\nbbbb\n\ncccc", 10)) == ["aaaa\n\nbbbb", "cccc"]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    assert list(cut("One two. Three four! Five?", 14)) == ["One two.", "Three four!", "Five?"]


def test_a_long_sentence_is_cut_at_spaces_and_a_long_word_anywhere() -> None:
    assert list(cut("aaa bbb cccccccc", 5)) == ["aaa", "bbb", "ccccc", "ccc"]


@given(st.text("ab. \n", max_size=200), st.integers(1, 30))
def test_no_piece_is_too_long_and_no_character_is_lost(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_digests_are_equal_for_texts_that_differ_in_white_space_only() -> None:
    assert Document("a  b\nc", "x").digest == Document("a b c", "y").digest
    assert Document("a b c", "x").digest != Document("ab c", "x").digest
