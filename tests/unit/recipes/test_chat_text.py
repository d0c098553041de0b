from __future__ import annotations

from typing import Any

import torch

from recipes.chat_text import MAX_NEW_TOKENS, DenseChat
from tests.support.chat_tokenizer import train_chat_tokenizer

TOKENIZER = train_chat_tokenizer()


class Canned:
    """A model that gives an answer that ends and one that does not, in turn."""

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        said = TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize("yes"))
        ended = torch.full((MAX_NEW_TOKENS,), TOKENIZER.eos_token_id)
        ended[: len(said)] = torch.tensor(said)
        endless = torch.tensor((said * MAX_NEW_TOKENS)[:MAX_NEW_TOKENS])
        answers = torch.stack([(ended, endless)[place % 2] for place in range(len(input_ids))])
        return torch.cat([input_ids, answers], 1)


def test_answers_without_an_end_are_left_out() -> None:
    texts = list(DenseChat(Canned(), TOKENIZER).texts(["first?", "second?", "third?"]))
    assert [word for text in texts for word in ("first", "second", "third") if word in text] == [
        "first",
        "third",
    ]
    assert all(text.endswith("yes<|im_end|>\n") for text in texts)


def test_questions_that_would_be_cut_are_left_out() -> None:
    chat = DenseChat(Canned(), TOKENIZER)
    (text,) = chat.texts(["why? " * 500, "first?"])
    assert "first?" in text
    assert "why?" not in text
    assert list(chat.texts(["why? " * 500])) == []
