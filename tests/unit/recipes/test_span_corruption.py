from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from recipes.document import Document
from recipes.span_corruption import MAX_TOKENS, Gapped, corrupt_all, spans


@given(st.integers(2, 300), st.integers(0, 99))
def test_spans_part_the_tokens_by_turns(length: int, seed: int) -> None:
    parts = spans(range(length), random.Random(seed))
    assert [token for part in parts for token in part] == list(range(length))
    assert all(parts)
    assert len(parts) % 2 == 0


def test_fifteen_per_cent_are_cut_out_in_spans_of_three() -> None:
    parts = spans(range(100), random.Random(0))
    assert sum(map(len, parts[1::2])) == 15
    assert len(parts[1::2]) == 5


def test_a_tokens_chance_to_be_cut_out_is_about_the_same_everywhere_but_at_the_ends() -> None:
    counts = [0] * 100
    for seed in range(2_000):
        for part in spans(range(100), random.Random(seed))[1::2]:
            for token in part:
                counts[token] += 1
    assert all(200 < count < 420 for count in counts[10:90])


def test_the_gaps_filled_give_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    document = Document(text * 5, "some")
    made = list(corrupt_all([document], tokenizer))
    restored = " ".join(item.restored() for item in made)
    assert len(made) > 3
    assert restored.split() == document.text.split()[: len(restored.split())]
    assert all(item.restored() not in (item.prompt, item.completion) for item in made)


def test_prompt_and_completion_have_the_sentinels_in_order() -> None:
    gapped = Gapped(
        "Thank<extra_id_0> to<extra_id_1>", "<extra_id_0> you for coming<extra_id_1> it.<extra_id_2>"
    )
    assert gapped.restored() == "Thank you for coming to it."


def test_completions_end_with_one_more_sentinel(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    for item in corrupt_all([Document(text, "some")], tokenizer):
        num_gaps = item.prompt.count("<extra_id_")
        assert num_gaps > 0
        assert item.completion.endswith(f"<extra_id_{num_gaps}>")


def test_pieces_are_short(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    for item in corrupt_all([Document(text * 5, "some")], tokenizer):
        assert 16 <= len(tokenizer.encode(item.restored(), add_special_tokens=False)) <= MAX_TOKENS


def test_the_seed_decides_and_other_documents_do_not(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    document, other = Document(text, "some"), Document(text[::-1], "some")
    alone = list(corrupt_all([document], tokenizer))
    assert list(corrupt_all([other, document], tokenizer))[-len(alone) :] == alone
    assert list(corrupt_all([document], tokenizer, seed=1)) != alone


def test_no_gap_cuts_a_character_in_two(tokenizer: PreTrainedTokenizerFast) -> None:
    japanese = Document("鳥は春に巣を作る。" * 40, "some")  # three tokens a character
    made = [item for seed in range(30) for item in corrupt_all([japanese], tokenizer, seed)]
    assert all("\ufffd" not in item.prompt + item.completion for item in made)


def test_remains_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    assert list(corrupt_all([Document("A robin.", "some")], tokenizer)) == []
