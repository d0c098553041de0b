from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgmoe.engine.llm import LLM
from pgmoe.errors import InvalidRequest
from pgmoe.request import SamplingParams
from tests.conftest import TinyCheckpoints

GREEDY = SamplingParams(max_tokens=16, temperature=0)


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, device="cpu") as llm:
        yield llm


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ((), "the prompt is empty"),
        ([5, 512], "prompt token 512 is not an id from 0 to 511"),
        ([5, -1], "prompt token -1 is not an id from 0 to 511"),
        ([True, 5], "prompt token True is not an id"),
        ("good \ud83d half", "not valid Unicode"),
        ("word " * 600, r"tokens, the context 512; shorten it"),
    ],
    ids=["text", "ids", "large", "negative", "bool", "surrogate", "long"],
)
def test_a_bad_prompt_is_refused_before_anything_is_computed(llm: LLM, prompt: Any, message: str) -> None:
    before = (llm.stats.prompt_tokens, llm.stats.finished["rejected"])
    with pytest.raises(InvalidRequest, match=message) as caught:
        llm.generate(["B", prompt], GREEDY)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest, match=message):
        llm.stream(prompt, GREEDY)
    assert (llm.stats.prompt_tokens, llm.stats.finished["rejected"]) == (before[0], before[1] + 2)


def test_without_a_tokenizer_ids_are_answered_and_text_is_refused(tiny: TinyCheckpoints) -> None:
    with LLM(tiny("mixtral"), device="cpu") as llm:
        (answer,) = llm.generate([5, 6, 7], GREEDY)
        assert (answer.text, len(answer.token_ids)) == ("", 16)
        with pytest.raises(InvalidRequest, match="has no tokenizer; send prompt_token_ids"):
            llm.generate("text", GREEDY)
        with pytest.raises(InvalidRequest, match="needs a tokenizer"):
            llm.generate([5], SamplingParams(stop=("x",)))
