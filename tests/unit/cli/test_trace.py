from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.cli.trace import read_prompts
from pgmoe.engine.llm import LLM
from pgmoe.errors import ConfigError
from pgmoe.experts.policies import make_policy
from pgmoe.request import SamplingParams
from pgmoe.simulation.demand import demands
from pgmoe.simulation.replay import replay_misses
from pgmoe.trace import Trace

PROMPTS = ["How far is the moon?", "Bake bread."]


def record(model: Path, out: Path, *options: str, prompts: str = "\n".join(PROMPTS)) -> Trace:
    """What `pgmoe trace` writes."""
    file = out.with_suffix(".txt")
    file.write_text(prompts, encoding="utf-8")
    arguments = ["trace", str(model), "--prompts", str(file), "-o", str(out), "--device", "cpu", *options]
    result = CliRunner().invoke(app, [*arguments, "--max-tokens", "5"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "forward passes of 2 prompts" in result.stderr
    return Trace.load(out)


def test_every_pass_of_every_prompt_is_recorded(tiny_chat: Path, tmp_path: Path) -> None:
    trace = record(tiny_chat, tmp_path / "t.parquet", "--raw")
    with LLM(tiny_chat, device="cpu") as llm:
        layers = llm.expert_layers
        answers = llm.generate(PROMPTS, SamplingParams(max_tokens=5, temperature=0))
    assert trace.model == tiny_chat.name
    assert trace.experts_per_layer == tuple(layer.num_experts for layer in layers)
    assert (trace.top_k, trace.expert_bytes) == (layers[0].top_k, layers[0].layout.weight_bytes)
    num_tokens = [n for a in answers for n in (a.usage.prompt_tokens, *[1] * (a.usage.completion_tokens - 1))]
    assert [len(step.layers[0].ids) for step in trace.steps] == num_tokens
    assert len({step.sequence for step in trace.steps}) == 2
    for step in trace.steps:
        assert [traced.layer for traced in step.layers] == list(range(len(layers)))
        for traced in step.layers:
            assert all(len(row) == trace.top_k == len(set(row)) for row in traced.ids)
            assert all(0 <= score <= 1 for row in traced.scores for score in row)


def test_the_budget_does_not_change_what_is_recorded(tiny_chat: Path, tmp_path: Path) -> None:
    whole = record(tiny_chat, tmp_path / "whole.parquet")
    tight = record(tiny_chat, tmp_path / "tight.parquet", "--device-memory", "50%")
    assert tight == whole


def test_what_the_next_routers_would_choose_is_recorded_at_any_budget(
    tiny_chat: Path, tmp_path: Path
) -> None:
    for budget in ("100%", "50%"):
        for step in record(tiny_chat, tmp_path / "t.parquet", "--device-memory", budget).steps:
            first, *later = step.layers
            assert first.predicted == ()
            for traced in later:
                assert [len(row) for row in traced.predicted] == [len(row) for row in traced.ids]


def test_prompts_that_run_together_are_recorded_together(tiny_chat: Path, tmp_path: Path) -> None:
    trace = record(tiny_chat, tmp_path / "t.parquet", "--at-once", "2")
    apart = record(tiny_chat, tmp_path / "apart.parquet", "--at-once", "1")
    both = "+".join(dict.fromkeys(step.sequence for step in apart.steps))
    assert [step.sequence for step in trace.steps[:4]] == [both] * 4
    assert [len(step.layers[0].ids) for step in trace.steps[1:4]] == [2] * 3


def test_a_replay_misses_as_often_as_the_engine_did(tiny_chat: Path, tmp_path: Path) -> None:
    trace = record(tiny_chat, tmp_path / "t.parquet", "--raw")
    with LLM(tiny_chat, device="cpu", device_memory="50%", gating="on_demand", num_readers=1) as llm:
        for prompt in PROMPTS:
            llm.generate(prompt, SamplingParams(max_tokens=5, temperature=0))
        served, num_slots = llm.stats.experts, llm.info.num_slots
    wanted = demands(trace)
    assert sum(map(len, wanted)) == served.num_hits + served.num_misses
    policy = make_policy("prospect", trace.experts_per_layer)
    assert replay_misses(wanted, num_slots, policy) == served.num_misses


def test_prompts_come_a_line_each_or_as_json_lines(tmp_path: Path) -> None:
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text('one\n\n{"prompt": "two"}\n', encoding="utf-8")
    assert read_prompts(text) == ["one", '{"prompt": "two"}']
    lines.write_text(
        "\n".join(json.dumps({"prompt": p, "id": 1}) for p in ("a\nb", "naïve")), encoding="utf-8"
    )
    assert read_prompts(lines) == ["a\nb", "naïve"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"\xff\xfe", "cannot read the prompts"),
        ("p.jsonl", b'{"prompt": "a"}\nplain', "line 2: want JSON such as .*, got 'plain'"),
        ("p.jsonl", b'{"text": "a"}', "line 1: want JSON"),
        ("p.jsonl", b'{"prompt": 3}', "line 1: want JSON"),
        ("p.jsonl", b"[1]", "line 1: want JSON"),
    ],
)
def test_other_prompt_files_are_refused(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        read_prompts(tmp_path / name)


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the prompts .*nothing\.txt"):
        read_prompts(tmp_path / "nothing.txt")
