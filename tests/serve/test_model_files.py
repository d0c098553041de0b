"""What the ingress reads from a model folder: chat template and sampling defaults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deployments.chat_template import ChatMessage, ChatTemplate
from deployments.sampling_defaults import load_defaults
from pgmoe.errors import CorruptCheckpoint, InvalidRequest

HELLO = [ChatMessage("user", "Hello")]


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder without its weights."""
    target = tmp_path / "model"
    return Path(shutil.copytree(model_folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def with_template(folder: Path, template: str | None) -> ChatTemplate:
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return ChatTemplate.load(folder)


def test_a_conversation_ends_where_the_answer_begins(copy: Path) -> None:
    text = ChatTemplate.load(copy).render([ChatMessage("system", "Be brief."), *HELLO])
    assert text == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_a_conversation_says_why(copy: Path) -> None:
    template = with_template(copy, "{{ raise_exception('no system messages here') }}")
    with pytest.raises(InvalidRequest, match="no system messages here"):
        template.render(HELLO)


def test_a_model_without_template_says_what_to_do_instead(copy: Path) -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        with_template(copy, None).render(HELLO)


def test_a_model_without_tokenizer_can_be_loaded_but_not_chatted_with(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate.load(copy).render(HELLO)


def test_a_model_without_recommendations_has_no_sampling_defaults(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert load_defaults(copy) == {}
    (copy / "generation_config.json").unlink()
    assert load_defaults(copy) == {}


@pytest.mark.parametrize("text", ["{", json.dumps({"temperature": 50.0, "do_sample": True})])
def test_recommendations_that_cannot_be_followed_are_named_with_their_file(copy: Path, text: str) -> None:
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"generation_config\.json"):
        load_defaults(copy)
