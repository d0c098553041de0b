from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pgmoe.errors import CheckpointError
from pgmoe.models.tokenizer import load_tokenizer
from tests.conftest import TinyCheckpoints


def test_a_folder_without_tokenizer_files_has_none(tiny: TinyCheckpoints) -> None:
    assert load_tokenizer(tiny("mixtral")) is None


def test_the_tokenizer_of_a_folder_encodes_and_decodes(tiny_chat: Path) -> None:
    tokenizer = load_tokenizer(tiny_chat)
    assert tokenizer is not None
    text = "How far is the moon? 🙂"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_named(tiny_chat: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = shutil.copytree(tiny_chat, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(
        CheckpointError, match="the tokenizer cannot be loaded; copy its files again"
    ) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value)
