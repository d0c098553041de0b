from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from pgmoe.engine.detokenizer import Detokenizer, token_text
from tests.unit.engine.trained_tokenizers import byte_level_bpe, llama_bpe, metaspace_unigram

TOKENIZERS = {make.__name__: make() for make in (byte_level_bpe, llama_bpe, metaspace_unigram)}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
TEXT = st.text(max_size=30) | st.text(alphabet=" \nhelo你é🌶.", max_size=30)
"""Any Unicode at all, and what is met in practice mixed closely."""


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Arbitrary ids: bytes in any order, special tokens anywhere, a few past the vocabulary."""
    size = len(TOKENIZERS[kind])
    return st.lists(st.integers(0, size + 2) | st.integers(0, 2), max_size=40)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@KINDS
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_pieces_of_any_tokens_join_to_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    tokenizer, ids = TOKENIZERS[kind], data.draw(ids_of(kind))
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@KINDS
@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_text_that_is_encoded_comes_back_in_whole_characters(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    out = pieces(tokenizer, ids)
    assert "".join(out) == decode(tokenizer, ids)
    assert "".join(out).count("\ufffd") == text.count("\ufffd")


@KINDS
@given(data=st.data(), prompt=TEXT)
@settings(max_examples=150, deadline=None)
def test_an_answer_goes_on_where_the_prompt_ends(kind: str, data: st.DataObject, prompt: str) -> None:
    tokenizer, ids = TOKENIZERS[kind], data.draw(ids_of(kind))
    before = tokenizer.encode(prompt, add_special_tokens=False)
    expected = decode(tokenizer, before + ids)[len(decode(tokenizer, before).rstrip("\ufffd")) :]
    assert "".join(pieces(tokenizer, ids, tuple(before))) == expected


@pytest.mark.parametrize("kind", ["llama_bpe", "metaspace_unigram"])
def test_the_first_word_keeps_its_space_after_a_prompt_and_has_none_without(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    prompt = tokenizer.encode("Hello", add_special_tokens=False)
    answer = tokenizer.encode("world", add_special_tokens=False)
    assert "".join(pieces(tokenizer, answer, tuple(prompt))) == " world"
    assert "".join(pieces(tokenizer, answer)) == "world"


@KINDS
def test_a_character_of_several_tokens_comes_in_one_piece(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("o 𝄞 o", add_special_tokens=False)
    with_text = [piece for piece in pieces(tokenizer, ids) if piece]
    assert len(with_text) < len(ids)
    assert any("𝄞" in piece for piece in with_text)


@KINDS
def test_words_are_streamed_as_they_come(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("hello world hello world", add_special_tokens=False)
    *streamed, last = pieces(tokenizer, ids)
    assert "".join(streamed) == "hello world hello world"
    assert last == ""
    assert sum(map(bool, streamed)) >= len(ids) - 1  # a `▁` at the very start has no text


@KINDS
def test_an_answer_cut_within_a_character_ends_with_a_replacement(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("o𝄞", add_special_tokens=False)[:-1]
    *streamed, last = pieces(tokenizer, ids)
    assert "".join(streamed) == "o"
    assert set(last) == {"\ufffd"}


def test_a_prompt_that_ends_within_a_character_leaks_none_of_its_text() -> None:
    tokenizer = TOKENIZERS["byte_level_bpe"]
    ids = tokenizer.encode("Hello world 𝄞!", add_special_tokens=False)
    tail = tokenizer.encode("𝄞!", add_special_tokens=False)
    cut = len(ids) - len(tail) + 2
    assert "".join(pieces(tokenizer, ids[cut:], tuple(ids[:cut]))) == "𝄞!"


def test_finish_gives_the_rest_once() -> None:
    tokenizer = TOKENIZERS["byte_level_bpe"]
    detokenizer = Detokenizer(tokenizer)
    detokenizer.push(tokenizer.encode("𝄞", add_special_tokens=False)[0])
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = Detokenizer(None, (1, 2))
    assert [detokenizer.push(7), detokenizer.finish()] == ["", ""]
    assert token_text(None, 7) == ""


@KINDS
def test_the_text_of_single_tokens_keeps_spaces_and_names_special_ones(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("Hello world", add_special_tokens=False)
    assert "".join(token_text(tokenizer, token_id) for token_id in ids).lstrip() == "Hello world"
    assert token_text(tokenizer, tokenizer.eos_token_id) == "</s>"
