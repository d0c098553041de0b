from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pgmoe.errors import ConfigError
from pgmoe.training.dataset import Collator, Row, Rows, read_rows
from tests.support.chat_tokenizer import train_chat_tokenizer
from tests.support.finetuning import DOCUMENTS, save_parquet

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How far is the moon?"},
    {"role": "assistant", "content": "Far."},
    {"role": "user", "content": "And the sun?"},
    {"role": "assistant", "content": "Farther, naïve one."},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_chat_tokenizer()


def rows_of(path: Path, tokenizer: PreTrainedTokenizerFast, length: int = 64, **options: Any) -> Rows:
    return read_rows([path], tokenizer, length, **{"encoder_decoder": False, **options})


def learnt(row: Row, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode([token for token in row.labels if token != -100]))


def test_documents_are_one_row_of_tokens_with_end_tokens_between_cut_to_equal_length(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = rows_of(save_parquet(tmp_path / "d.parquet", text=DOCUMENTS), tokenizer)
    ids = [token for text in DOCUMENTS for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert len(rows) == len(ids) // 64
    assert [token for row in rows for token in row.input_ids] == ids[: len(rows) * 64]
    assert all((row.labels == row.input_ids).all() for row in rows)
    assert rows.num_cut == 0


def test_files_follow_each_other(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    paths = [save_parquet(tmp_path / f"{n}.parquet", prompt=[f"{n}?"], completion=["so"]) for n in "ab"]
    rows = read_rows(paths, tokenizer, 64, encoder_decoder=False)
    assert [tokenizer.decode(row.input_ids, skip_special_tokens=True) for row in rows] == ["a?so", "b?so"]


def test_only_the_completion_is_labelled_and_ends_with_the_end_token(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = save_parquet(tmp_path / "p.parquet", prompt=["How far?"], completion=[" Far."])
    (row,) = rows_of(path, tokenizer)
    prompt = tokenizer("How far?")["input_ids"]
    assert row.input_ids[: len(prompt)].tolist() == prompt
    assert (row.labels[: len(prompt)] == -100).all()
    assert learnt(row, tokenizer) == " Far.<|im_end|>"
    assert row.labels[len(prompt) :].tolist() == row.input_ids[len(prompt) :].tolist()


def test_of_a_conversation_only_the_assistants_words_are_labelled(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (row,) = rows_of(save_parquet(tmp_path / "m.parquet", messages=[CHAT]), tokenizer, 512)
    assert tokenizer.decode(row.input_ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert learnt(row, tokenizer) == "Far.<|im_end|>\nFarther, naïve one.<|im_end|>\n"


def test_an_encoder_reads_the_prompt_and_the_decoder_learns_the_completion(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = save_parquet(tmp_path / "p.parquet", prompt=["How far?"], completion=["Far."])
    (row,) = rows_of(path, tokenizer, encoder_decoder=True)
    assert tokenizer.decode(row.input_ids) == "<|bos|>How far?<|im_end|>"
    assert tokenizer.decode(row.labels) == "Far.<|im_end|>"


def test_an_encoder_reads_a_conversation_up_to_its_last_answer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = save_parquet(tmp_path / "m.parquet", messages=[CHAT])
    (row,) = rows_of(path, tokenizer, 512, encoder_decoder=True)
    before = tokenizer.apply_chat_template(CHAT[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(row.input_ids) == before + "<|im_end|>"
    assert tokenizer.decode(row.labels).startswith("Farther, naïve one.<|im_end|>")


def test_long_rows_are_cut_and_counted_and_those_with_nothing_to_learn_left_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    prompts, completions = ["short?", "short?", "a long one " * 50], ["yes", "no " * 50, "yes"]
    path = save_parquet(tmp_path / "p.parquet", prompt=prompts, completion=completions)
    rows = rows_of(path, tokenizer, 24)
    assert (len(rows), rows.num_cut, rows.num_dropped) == (2, 1, 1)
    assert max(len(row.input_ids) for row in rows) == 24


def test_a_batch_is_padded_to_its_longest_row(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "p.parquet", prompt=["a?", "a longer one?"], completion=["x", "y"])
    rows = rows_of(path, tokenizer)
    batch = Collator(pad_id=0)(list(rows))
    width = len(rows[1].input_ids)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, width)
    pad = width - len(rows[0].input_ids)
    assert pad > 0
    assert (batch["labels"][0, -pad:] == -100).all()
    assert batch["attention_mask"].sum(1).tolist() == [width - pad, width]
    assert "attention_mask" not in Collator(pad_id=0)([rows[1], rows[1]])
    assert batch["labels"].dtype == torch.int64


WRONG = {
    "unknown column": ({"text": ["a"], "id": ["1"]}, "columns text, id; they must be text"),
    "half a pair": ({"prompt": ["a"]}, "columns prompt; they must be"),
    "numbers": ({"text": [1, 2]}, "column text holds int64; it must hold text"),
    "no list": ({"messages": ["a"]}, "column messages holds string; it must hold lists of"),
    "no role": ({"messages": [[{"content": "a"}]]}, "it must hold lists of {role, content}"),
    "empty cell": ({"text": ["a", None]}, "rows from 1: the 2. of them has an empty cell"),
    "no rows": ({"text": pa.array([], pa.string())}, "has no rows"),
    "too little": ({"text": ["a"]}, "tokens of text; a row needs 64"),
    "no answer": ({"messages": [CHAT[:2]]}, "nothing to learn in the first 64 tokens of any of 1 rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_data_that_cannot_be_learnt_from_is_refused_with_what_is_wrong(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    columns, message = WRONG[name]
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ConfigError) as error:
        rows_of(path, tokenizer)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_files_of_different_kinds_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    paths = [save_parquet(tmp_path / "a.parquet", text=["x"])]
    paths.append(save_parquet(tmp_path / "b.parquet", prompt=["x"], completion=["y"]))
    with pytest.raises(ConfigError, match=r"a\.parquet has text; .*b\.parquet has prompt and completion"):
        read_rows(paths, tokenizer, 8, encoder_decoder=False)


def test_what_is_no_parquet_file_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("text")
    for path in (tmp_path / "x.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(ConfigError, match="cannot be read as Parquet"):
            rows_of(path, tokenizer)


def test_text_is_refused_for_an_encoder_decoder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "d.parquet", text=DOCUMENTS)
    with pytest.raises(ConfigError, match="learns from prompt and completion"):
        rows_of(path, tokenizer, encoder_decoder=True)


def test_a_conversation_without_a_template_is_refused(tmp_path: Path) -> None:
    plain = train_chat_tokenizer()
    plain.chat_template = None
    path = save_parquet(tmp_path / "m.parquet", messages=[CHAT])
    with pytest.raises(ConfigError, match="no chat template; give prompt and completion"):
        rows_of(path, plain)


def test_a_template_that_rewrites_what_was_said_is_refused(tmp_path: Path) -> None:
    odd = train_chat_tokenizer()
    odd.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path = save_parquet(tmp_path / "m.parquet", messages=[CHAT])
    with pytest.raises(ConfigError, match="answers cannot be told from prompts"):
        rows_of(path, odd)
