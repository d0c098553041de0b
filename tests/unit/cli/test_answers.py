from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from pgmoe import LLM, SamplingParams
from pgmoe.cli import answers as answers_command
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from tests.support.checkpoints import save_tiny_chat

PROMPTS = ["Why is the sky blue?", "Hello", "What is 2 + 2?"]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends no answer."""
    return save_tiny_chat(tmp_path_factory.mktemp("answers") / "endless")


@pytest.fixture(scope="module")
def model(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but that every third token ends an answer."""
    folder = shutil.copytree(endless, tmp_path_factory.mktemp("answers") / "tiny-chat")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(3, 500, 3))}))
    return folder


def answers(model: Path, folder: Path, *options: str) -> list[dict[str, object]]:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    arguments = [
        "answers",
        str(model),
        "--prompts",
        str(folder / "prompts.txt"),
        "-o",
        str(folder / "out.parquet"),
    ]
    limits = ["--max-tokens", "40", "--temperature", "0", "--at-once", "2", "--device", "cpu"]
    run = CliRunner().invoke(app, [*arguments, *limits, *options])
    assert run.exit_code == 0, run.output
    assert "3 answers written to" in run.stderr
    assert "0 cut short left out" in run.stderr
    rows: list[dict[str, object]] = parquet.read_table(folder / "out.parquet").to_pylist()
    return rows


def test_chats_are_written_as_messages(model: Path, tmp_path: Path) -> None:
    rows = answers(model, tmp_path)
    asked = [row["messages"][0] for row in rows]  # type: ignore[index]
    assert asked == [{"role": "user", "content": prompt} for prompt in PROMPTS]
    said = [row["messages"][1] for row in rows]  # type: ignore[index]
    assert {turn["role"] for turn in said} == {"assistant"}
    assert len({turn["content"] for turn in said}) == 3


def test_without_a_template_prompt_and_completion_are_written(model: Path, tmp_path: Path) -> None:
    rows = answers(model, tmp_path, "--raw")
    with LLM(model, device="cpu") as llm:
        said = llm.generate(PROMPTS, SamplingParams(max_tokens=40, temperature=0))
    assert rows == [
        {"prompt": prompt, "completion": answer.text} for prompt, answer in zip(PROMPTS, said, strict=True)
    ]


def test_answers_that_were_cut_short_are_left_out(endless: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    files = ["--prompts", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out.parquet")]
    with pytest.raises(ConfigError, match="no answer ended within 4 tokens"):
        CliRunner().invoke(
            app,
            ["answers", str(endless), *files, "--max-tokens", "4", "--device", "cpu"],
            catch_exceptions=False,
        )
    assert not (tmp_path / "out.parquet").exists()


def too_long(prompts: list[str]) -> None:
    prompts.append("Hello " * 5_000)


def ctrl_c(prompts: list[str]) -> None:
    prompts.append("interrupt")


@pytest.mark.parametrize(("spoil", "exit_code"), [(too_long, 1), (ctrl_c, 130)])
def test_what_ends_the_work_costs_no_answer_of_the_groups_before(
    spoil: Callable[[list[str]], None],
    exit_code: int,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers_command, "GROUP", 2)
    generate = LLM.generate

    def interrupted(self: LLM, asked: Any, *args: Any, **kwargs: Any) -> Any:
        if any("interrupt" in str(prompt) for prompt in asked):
            raise KeyboardInterrupt
        return generate(self, asked, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", interrupted)
    wanted = list(PROMPTS)
    spoil(wanted)  # in a group with the last of the others
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.parquet"
    prompts.write_text("\n".join(wanted))
    arguments = ["answers", str(model), "--prompts", str(prompts), "-o", str(out), "--device", "cpu"]
    run = CliRunner().invoke(app, [*arguments, "--max-tokens", "40", "--temperature", "0", "--at-once", "1"])
    assert run.exit_code == exit_code
    written = parquet.read_table(out).to_pylist()
    assert [row["messages"][0]["content"] for row in written] == PROMPTS[:2]


def test_the_summary_says_what_is_left(tmp_path: Path) -> None:
    told = answers_command._summary(2, 2, 4, tmp_path)
    assert "only the first 2 of 4 prompts were answered" in told
    assert answers_command._summary(3, 4, 4, tmp_path).endswith("1 cut short left out")


def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        CliRunner().invoke(
            app,
            ["answers", "missing", "--prompts", "x", "-o", str(tmp_path / "no" / "out.parquet")],
            catch_exceptions=False,
        )
