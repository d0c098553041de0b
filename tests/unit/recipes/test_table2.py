from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from pgmoe.bench.quality_result import QualityRun
from pgmoe.bench.result_file import load_result
from pgmoe.errors import ConfigError
from pgmoe.pre_gating import Scope
from pgmoe.training.pregate import pregate
from pgmoe.training.trainable import load_whole
from recipes.example import TEST, TRAIN, Example, Task
from recipes.seq2seq_answers import Answerer
from recipes.switch_model import SwitchSize, save_switch_model
from recipes.table2 import app, carry_out_all
from recipes.table2_folder import Experiment
from recipes.table2_plan import SUMMARY_METRICS, UNTUNED, Budget, Plan, TaskPlan
from recipes.table2_result import cells
from recipes.table2_run import carry_out, prepare
from recipes.table_file import read_table
from recipes.tokenizer import save_tokenizer

TINY = SwitchSize(d_model=16, d_ff=16, num_experts=2)
BUDGET = Budget(steps=2, batch_size=4, learning_rate=1e-3, max_tokens=48)
LEVELS = (0, 1, 3)
TASKS = (
    TaskPlan(name="closed_book", budget=BUDGET, max_answer_tokens=3),
    TaskPlan(name="summary", budget=BUDGET, max_answer_tokens=3, metrics=SUMMARY_METRICS),
)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_tokenizer(tokenizer, folder / "tokenizer")
    rows = [Example(f"What is number {n}?", f"the bird {n}", (f"the bird {n}", "a bird")) for n in range(20)]
    for name in (UNTUNED, *(task.name for task in TASKS)):
        Task(name, tuple(rows[:14]), tuple(rows[14:])).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def plan(data: Path) -> Plan:
    budgets = {"pretraining": BUDGET, "multi_task": replace(BUDGET, steps=3)}
    return Plan(data=data, size=TINY, tasks=TASKS, levels=LEVELS, seeds=(0, 1), precision="fp32", **budgets)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def experiment(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = Experiment(tmp_path_factory.mktemp("experiment") / "e")
    carry_out_all(plan, experiment)
    return experiment


def test_every_task_level_and_seed_gets_a_row_and_models_are_removed(
    plan: Plan, experiment: Experiment
) -> None:
    rows = experiment.rows()
    assert {(row.task, row.level, row.seed) for row in rows.values()} == {
        (task, level, seed)
        for task, seeds in ((UNTUNED, (0,)), ("closed_book", (0, 1)), ("summary", (0, 1)))
        for level in LEVELS
        for seed in seeds
    }
    assert list(rows) == [run.name for run in plan.runs()]
    assert not list((experiment.folder / "runs").iterdir())
    assert {"exact_match", "f1", "loss"} == set(rows["closed_book-level3-next-seed1"].scores)
    assert rows["summary-level0-seed0"].scores["loss"] > 0


def test_an_interrupted_experiment_goes_on_without_repeating_runs(
    plan: Plan, experiment: Experiment, tmp_path: Path
) -> None:
    rows = list(experiment.rows().values())
    half = Experiment(tmp_path / "half")
    half.folder.mkdir()
    for name in ("fresh", "pretrained", "multi-task", "data"):
        (half.folder / name).symlink_to(experiment.folder / name)
    short = replace(plan, tasks=TASKS[:1], seeds=(0,), levels=(0, 1))
    marked = [replace(row, seconds=-1.0) for row in rows if row.level == 0]
    for row in marked:
        half.add(row)
    with (half.folder / "scores.jsonl").open("ab") as file:
        file.write(b'{"name": "closed_book-level1-next-seed0", "ta')  # a crash while it was written
    carry_out_all(short, half)
    found = half.rows()
    assert found["closed_book-level0-seed0"].seconds == -1
    repeated = found["closed_book-level1-next-seed0"]
    assert repeated.seconds > 0
    assert repeated.scores == experiment.rows()[repeated.name].scores  # and the same seed, the same scores


def test_a_row_is_kept_before_its_models_are_removed(
    plan: Plan, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Experiment(tmp_path / "shared")
    shared.folder.mkdir()
    for name in ("fresh", "pretrained", "multi-task", "data"):
        (shared.folder / name).symlink_to(experiment.folder / name)

    def full(row: QualityRun) -> None:
        raise OSError(28, "No space left on device")

    run = next(run for run in plan.runs() if run.task == "closed_book")
    monkeypatch.setattr(shared, "add", full)
    with pytest.raises(OSError, match="No space"):
        carry_out(run, plan, shared)
    assert (shared.folder / "runs" / run.name / "tuned").is_dir()


def test_seeds_give_different_runs(experiment: Experiment) -> None:
    rows = experiment.rows()
    for level in ("level0", "level1-next"):
        one, other = (rows[f"closed_book-{level}-seed{seed}"].scores["loss"] for seed in (0, 1))
        assert one != other


def test_level_0_starts_from_a_plain_copy(experiment: Experiment, tmp_path: Path) -> None:
    copy = pregate(str(experiment.pretrained), tmp_path / "copy", level=0).folder
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (copy / name).read_bytes() == (experiment.pretrained / name).read_bytes()


def test_runs_start_from_what_was_trained_on_all_tasks(plan: Plan, experiment: Experiment) -> None:
    log = parquet.read_table(experiment.multi_task / "training.parquet")
    assert len(log) == 3
    assert (experiment.multi_task / "model.safetensors").read_bytes() != (
        experiment.pretrained / "model.safetensors"
    ).read_bytes()
    assert "all tasks together" in carry_out_all(plan, experiment).conditions["before the runs"]


def test_a_claimed_run_is_left_to_whoever_has_it(plan: Plan, experiment: Experiment, tmp_path: Path) -> None:
    other = Experiment(tmp_path)
    with other.claim("a") as first, other.claim("a") as second, other.claim("b") as third:
        assert (first, second, third) == (True, False, True)
    with other.claim("a") as again:
        assert again


@pytest.mark.long
def test_processes_share_the_runs(plan: Plan, experiment: Experiment, tmp_path: Path) -> None:
    shared = Experiment(tmp_path / "shared")
    shared.folder.mkdir()
    for name in ("fresh", "pretrained", "multi-task", "data"):
        (shared.folder / name).symlink_to(experiment.folder / name)
    short = replace(plan, tasks=TASKS[:1], seeds=(0,), levels=(0, 1))
    carry_out_all(short, shared, num_workers=2)
    lines = [line for line in (shared.folder / "scores.jsonl").read_text().splitlines() if line]
    assert sorted(json.loads(line)["name"] for line in lines) == sorted(run.name for run in short.runs())
    name = "closed_book-level1-next-seed0"
    assert shared.rows()[name].scores == experiment.rows()[name].scores


def test_another_plan_in_the_same_folder_is_refused(plan: Plan, experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=r"pretraining\.steps was 2"):
        experiment.note(replace(plan, pretraining=replace(BUDGET, steps=3)))


def test_starts_are_compared_before_and_after_fine_tuning(plan: Plan) -> None:
    names = [run.name for run in replace(plan, compare_starts_on="closed_book").runs()]
    assert len(set(names)) == len(names) == len(plan.runs()) + 2 * 2 + 1 + 2
    assert "span_corruption-level1-fresh-seed1" in names
    assert "span_corruption-level1-own-seed1" not in names  # nothing of it is drawn
    assert "closed_book-level1-own-seed1" in names


def test_the_table_has_levels_gains_and_the_papers_figures(
    plan: Plan, experiment: Experiment, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    result = carry_out_all(plan, experiment)
    path = result.save(tmp_path)
    assert path.name.startswith("quality-switch-")
    assert load_result(path) == result
    shown = CliRunner().invoke(app, ["show", str(path)]).stdout
    header = "| task | metric | conventional | level 1 | level 3 | level 1 less conventional | "
    assert header + "the paper's Base-8 |" in shown
    assert "CB-WebQA EM: 26.0, 28.2" in shown
    assert "1 on span_corruption" not in shown
    assert CliRunner().invoke(app, ["plot", str(path)]).exit_code == 0
    assert path.with_suffix(".png").stat().st_size > 1_000


def test_means_are_over_seeds_and_gains_between_equal_seeds() -> None:
    def row(level: int, start: str | None, seed: int, score: float) -> QualityRun:
        return QualityRun(f"{level}{seed}", "t", level, start, seed, {"f1": score}, 1.0)

    runs = [row(0, None, 0, 10.0), row(0, None, 1, 20.0), row(1, "next", 0, 11.0), row(1, "next", 1, 22.0)]
    conventional, ahead = cells(runs, {"t": ("f1",)})
    assert (conventional.score.mean, conventional.gain) == (15.0, None)
    assert ahead.score.mean == 16.5
    assert ahead.gain is not None
    assert ahead.gain.text(1, "+") == "+1.5 ± 6.4"


def test_long_prompts_are_tested_but_not_trained_on(plan: Plan, data: Path, tmp_path: Path) -> None:
    rows = tuple(Example("robin " * n, "a", ("a",)) for n in (1, 90))
    Task("closed_book", rows, rows).save(tmp_path / "data" / "closed_book")
    for name in ("tokenizer", UNTUNED):
        (tmp_path / "data" / name).symlink_to(data / name)
    experiment = Experiment(tmp_path / "e")
    prepare(replace(plan, data=tmp_path / "data", tasks=TASKS[:1]), experiment)
    assert len(read_table(experiment.data("closed_book", TRAIN))) == 1
    assert len(read_table(experiment.data("closed_book", TEST))) == 2


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("scope", ["decoder", "both"])
def test_generation_with_a_cache_gives_what_whole_passes_give(
    level: int, scope: Scope, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    size = replace(TINY, d_model=32, num_experts=4)
    save_switch_model(size, tokenizer, tmp_path / "m", seed=4)
    model = pregate(str(tmp_path / "m"), tmp_path / "a", level=level, start="fresh", scope=scope).folder
    network: Any = load_whole(model, torch.float32)
    prompts = ["A robin is a small songbird", "Köln", "In 1792 the president spoke of peace, of April"]
    given = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    said = network.generate(**given, **options)
    with torch.no_grad():
        whole = network(**given, decoder_input_ids=said.sequences[:, :-1]).logits
    torch.testing.assert_close(torch.stack(said.logits, 1), whole)
    answerer = Answerer(model)
    alone = [answerer.answers([prompt], 6)[0] for prompt in prompts]
    assert any(alone)
    assert answerer.answers(prompts, 6) == alone
