from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoConfig

from pgmoe.bench.random_model import OlmoeShape
from pgmoe.bench.small_model import PROMPTS, Schedule, train_small_moe
from pgmoe.engine.llm import LLM
from pgmoe.errors import ConfigError
from pgmoe.request import SamplingParams

SHAPE = OlmoeShape(
    vocab_size=320, width=32, num_layers=2, num_heads=2, num_experts=4, top_k=2, expert_width=16
)
SHORT = Schedule(num_steps=16, batch=8, length=16, peak_rate=1e-2, warm_up=3)


def write_text(path: Path, num_documents: int) -> Path:
    """Sentences after one pattern, so that there is something to learn."""
    draw = random.Random(0)
    birds, places = ("heron", "owl", "kestrel", "wren"), ("river", "barn", "cliff", "hedge")
    lines = (
        f"The {draw.choice(birds)} lives by the {draw.choice(places)} and the {draw.choice(birds)} does not."
        for _ in range(num_documents)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_training_lowers_the_perplexity_of_text_it_has_not_seen(tmp_path: Path) -> None:
    text, folder = write_text(tmp_path / "text.txt", 400), tmp_path / "moe"
    heard: list[tuple[str, int, int]] = []
    trained = train_small_moe(text, folder, SHAPE, SHORT, lambda *news: heard.append(news))
    assert trained.num_tokens == 16 * 8 * 16
    assert [(step, steps) for _, step, steps in heard] == [(n, 16) for n in range(1, 17)]
    assert heard[0][0].startswith("loss ")
    assert trained.perplexity_after < trained.perplexity_before / 3

    prompts = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()
    assert len(prompts) == 8  # one document in fifty
    assert all(prompt in text.read_text(encoding="utf-8") for prompt in prompts)
    assert AutoConfig.from_pretrained(folder).num_experts == 4
    with LLM(folder, device="cpu", device_memory="50%") as llm:
        (answer,) = llm.generate(prompts[0], SamplingParams(max_tokens=4, temperature=0))
    assert answer.usage.expert_misses > 0


@pytest.mark.parametrize(
    ("num_lines", "fault"), [(2, "has 2 lines.*give 100 or more"), (100, "more than 128 of both are needed")]
)
def test_too_short_a_text_is_refused_and_nothing_is_left(tmp_path: Path, num_lines: int, fault: str) -> None:
    text = write_text(tmp_path / "text.txt", num_lines)
    with pytest.raises(ConfigError, match=fault):
        train_small_moe(text, tmp_path / "moe", SHAPE, Schedule(length=128))
    assert list(tmp_path.iterdir()) == [text]


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the text .*nothing\.txt"):
        train_small_moe(tmp_path / "nothing.txt", tmp_path / "moe", SHAPE, SHORT)


def test_the_rate_rises_and_then_falls_to_a_tenth() -> None:
    schedule = Schedule(num_steps=100, warm_up=10, peak_rate=1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.001)
