from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pgmoe.errors import CheckpointError, InvalidRequest
from pgmoe.models.chat_template import ChatMessage, ChatTemplate
from pgmoe.models.tokenizer import load_tokenizer

HELLO = [ChatMessage("user", "Hello")]


@pytest.fixture
def copy(tiny_chat: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder without its weights."""
    target = tmp_path / "model"
    return Path(shutil.copytree(tiny_chat, target, ignore=shutil.ignore_patterns("*.safetensors")))


def with_template(folder: Path, template: str | None) -> ChatTemplate:
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return ChatTemplate(load_tokenizer(folder))


def test_a_conversation_ends_where_the_answer_begins(copy: Path) -> None:
    text = ChatTemplate(load_tokenizer(copy)).render([ChatMessage("system", "Be brief."), *HELLO])
    assert text == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_a_conversation_says_why(copy: Path) -> None:
    template = with_template(copy, "{{ raise_exception('no system messages here') }}")
    with pytest.raises(InvalidRequest, match="no system messages here"):
        template.render(HELLO)


def test_a_model_without_template_says_what_to_do_instead(copy: Path) -> None:
    with pytest.raises(InvalidRequest, match="plain prompt"):
        with_template(copy, None).render(HELLO)


def test_a_model_without_tokenizer_can_be_loaded_but_not_chatted_with(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate(load_tokenizer(copy)).render(HELLO)


def test_a_template_that_trips_over_a_message_is_the_messages_fault(copy: Path) -> None:
    template = with_template(copy, "{{ messages[0]['content'] + 1 }}")
    with pytest.raises(InvalidRequest, match="refuses the messages"):
        template.render(HELLO)


def test_a_broken_tokenizer_is_a_fault_of_the_checkpoint(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="copy its files again"):
        ChatTemplate(load_tokenizer(copy))
