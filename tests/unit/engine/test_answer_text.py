from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmoe.engine.answer_text import AnswerText
from pgmoe.engine.stop import TextStep
from pgmoe.errors import InvalidRequest
from tests.unit.engine.trained_tokenizers import byte_level_bpe, llama_bpe

TOKENIZERS = {make.__name__: make() for make in (byte_level_bpe, llama_bpe)}


def answer(kind: str, ids: list[int], stop: tuple[str, ...], prompt: tuple[int, ...] = ()) -> TextStep:
    text = AnswerText(TOKENIZERS[kind], stop, prompt)
    joined = ""
    for token_id in ids:
        step = text.push(token_id)
        joined += step.text
        if step.stopped:
            return TextStep(joined, stopped=True)
    last = text.finish()
    return TextStep(joined + last.text, last.stopped)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text("helo 你\n", max_size=20), stop=st.text("helo 你\n", min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_an_answer_ends_before_its_stop_string(kind: str, text: str, stop: str) -> None:
    ids = TOKENIZERS[kind].encode(text, add_special_tokens=False)
    whole = str(TOKENIZERS[kind].decode(ids))
    before, found, _ = whole.partition(stop)
    assert answer(kind, ids, (stop,)) == TextStep(before, stopped=bool(found))


def test_a_stop_string_may_begin_and_end_within_tokens() -> None:
    ids = TOKENIZERS["byte_level_bpe"].encode("hello world", add_special_tokens=False)
    assert answer("byte_level_bpe", ids, ("lo wor",)) == TextStep("hel", stopped=True)


def test_a_stop_string_in_the_prompt_does_not_stop_the_answer() -> None:
    tokenizer = TOKENIZERS["llama_bpe"]
    prompt = tuple(tokenizer.encode("world\n", add_special_tokens=False))
    ids = tokenizer.encode("hello", add_special_tokens=False)
    assert answer("llama_bpe", ids, ("world", "\n"), prompt) == TextStep(" hello")


def test_text_still_held_back_at_the_end_is_searched_too() -> None:
    ids = TOKENIZERS["llama_bpe"].encode("hello\n", add_special_tokens=False)  # \n is a byte token: held
    assert answer("llama_bpe", ids, ("\n",)) == TextStep("hello", stopped=True)


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="tokenizer") as caught:
        AnswerText(None, ("END",))
    assert caught.value.param == "stop"


def test_token_ids_alone_need_no_tokenizer() -> None:
    text = AnswerText(None)
    assert [text.push(3), text.finish()] == [TextStep(""), TextStep("")]
