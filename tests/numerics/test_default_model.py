"""The default model, built from the real package: it must answer, and stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pgmoe import pre_gate
from pgmoe.engine.free_memory import free_ram
from pgmoe.training.default_model import build_default_model

pytestmark = pytest.mark.timeout(1200)  # on a slow machine the building alone takes minutes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if free_ram() < 4 * 2**30:
        pytest.skip("building and loading the default model takes 4 GiB of memory")
    folder = tmp_path_factory.mktemp("default") / "model"
    yield build_default_model(folder).folder
    shutil.rmtree(folder)  # 1.3 GiB; pytest would keep it for three runs


def test_it_answers_a_question_and_ends_its_turn(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert pre_gate(model) is not None
    chat = [{"role": "user", "content": "What is the capital of Italy?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert "Rome" in answer
    assert answer.endswith("<|im_end|>")
    assert model.config.num_local_experts == 8
    assert model.generation_config.temperature == 0.2
    assert "# smollm2-8x135m-pregated" in (folder / "README.md").read_text()


def test_it_splits_numbers_into_digits_as_smollm_was_trained(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    assert tokenizer.decode(tokenizer("x  12")["input_ids"]) == "x  12"
