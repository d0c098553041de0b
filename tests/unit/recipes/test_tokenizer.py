from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipes.tokenizer import SENTINELS, save_tokenizer


def test_special_tokens_are_where_t5_has_them(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_99>"]) == [
        0, 1, 2, 3, 102,
    ]  # fmt: skip
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert set(SENTINELS) < set(tokenizer.all_special_tokens)


def test_every_encoding_ends_with_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in tokenizer(["a robin", ""])["input_ids"]:
        assert row[-1] == 1
        assert row.count(1) == 1


def test_no_text_loses_a_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    odd = "  two spaces, 鳥 and\ttab\n"
    assert tokenizer.decode(tokenizer.encode(odd), skip_special_tokens=True) == odd


def test_sentinels_in_a_text_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("a<extra_id_1> robin", add_special_tokens=False)
    assert ids.count(4) == 1
    assert tokenizer.decode(ids) == "a<extra_id_1> robin"


def test_a_saved_tokenizer_encodes_the_same(
    tokenizer: PreTrainedTokenizerFast, text: str, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.eos_token == "</s>"
