"""The steps of the experiment: data, pre-training, and a run from the pre-trained model to its scores."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerFast

from pgmoe.bench.quality_result import QualityRun
from pgmoe.training.finetune import finetune
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.pregate import pregate
from pgmoe.training.step_figures import Progress
from pgmoe.training.trainable import quiet
from recipes.example import TEST, TRAIN
from recipes.scores import score_answers, score_summaries
from recipes.seq2seq_answers import Answerer
from recipes.switch_model import save_switch_model
from recipes.table2_folder import Experiment
from recipes.table2_plan import SUMMARY_METRICS, UNTUNED, Budget, Plan, Run
from recipes.table_file import read_table, write_table

_SCHEMA = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
_CHECKPOINT_STEPS = 250
_NUM_UNTUNED = 1_000
"""Rows of span corruption on which models are compared that are not fine-tuned."""


def prepare(plan: Plan, experiment: Experiment) -> None:
    """Write the model to pre-train and the data, what is there excepted. Raises ConfigError."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plan.data / "tokenizer")
    if not experiment.fresh.exists():
        save_switch_model(plan.size, tokenizer, experiment.fresh)
    budgets = {UNTUNED: plan.pretraining, **{task.name: task.budget for task in plan.tasks}}
    for task, budget in budgets.items():
        if not (train := experiment.data(task, TRAIN)).exists():
            write_table(_short(read_table(plan.data / task / TRAIN), tokenizer, budget), _SCHEMA, train)
        if not (test := experiment.data(task, TEST)).exists():
            rows = read_table(plan.data / task / TEST)[: _NUM_UNTUNED if task == UNTUNED else None]
            write_table(_pairs(rows[: plan.num_test]), _SCHEMA, test)


def pretrain(plan: Plan, experiment: Experiment, progress: Progress | None = None) -> None:
    """Train the conventional model on span corruption, unless that is done; goes on where it was."""
    if not experiment.pretrained.exists():
        data = [experiment.data(UNTUNED, TRAIN)]
        finetune(_training(plan, data, plan.pretraining, experiment.fresh, experiment.pretrained), progress)


def train_together(plan: Plan, experiment: Experiment, progress: Progress | None = None) -> None:
    """Train what was pre-trained on all tasks, unless that is done; goes on where it was."""
    if not experiment.multi_task.exists():
        data = [experiment.data(task.name, TRAIN) for task in plan.tasks]
        finetune(
            _training(plan, data, plan.multi_task, experiment.pretrained, experiment.multi_task), progress
        )


def carry_out(run: Run, plan: Plan, experiment: Experiment) -> QualityRun:
    """Make the model of a run, score it, add its row and remove the models. Raises as `finetune` does."""
    started = time.monotonic()
    work = experiment.folder / "runs" / run.name
    work.mkdir(parents=True, exist_ok=True)
    start, tuned = work / "start", work / "tuned"
    with _one_thread(), quiet():
        if not start.exists():
            pregate(
                str(experiment.pretrained if run.task == UNTUNED else experiment.multi_task),
                start,
                level=run.level,
                scope=plan.scope,
                start=run.start or plan.start,
                seed=run.seed,
            )
        if run.task != UNTUNED and not tuned.exists():
            data, budget = [experiment.data(run.task, TRAIN)], plan.task(run.task).budget
            finetune(_training(plan, data, budget, start, tuned, run.seed))
        scores = _scores(run, plan, experiment, start if run.task == UNTUNED else tuned)
    row = QualityRun(**asdict(run), name=run.name, scores=scores, seconds=time.monotonic() - started)
    experiment.add(row)
    shutil.rmtree(work)
    return row


def _training(
    plan: Plan, data: Sequence[Path], budget: Budget, model: Path, out: Path, seed: int = 0
) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(model),
        data=tuple(data),
        out=out,
        length=budget.max_tokens,
        batch_size=budget.batch_size,
        steps=budget.steps,
        learning_rate=budget.learning_rate,
        warm_up_steps=budget.warm_up_steps,
        schedule="cosine",
        precision=plan.precision,
        device=plan.device,
        checkpoint_steps=min(_CHECKPOINT_STEPS, budget.steps),
        seed=seed,
    )


def _scores(run: Run, plan: Plan, experiment: Experiment, model: Path) -> Mapping[str, float]:
    answerer = Answerer(model, plan.device)
    scores = {"loss": answerer.mean_loss(experiment.data(run.task, TEST))}
    if run.task == UNTUNED:
        return scores
    task = plan.task(run.task)
    rows = read_table(plan.data / run.task / TEST)[: plan.num_test]
    answers = answerer.answers([row["prompt"] for row in rows], task.max_answer_tokens)
    score = score_summaries if task.metrics == SUMMARY_METRICS else score_answers
    return scores | asdict(score(answers, [row["references"] for row in rows]))


def _pairs(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def _short(
    rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, budget: Budget
) -> list[dict[str, object]]:
    """Rows whose prompts fit: those few that are much longer would have every batch padded to them."""
    lengths = [len(ids) for ids in tokenizer([row["prompt"] for row in rows])["input_ids"]]
    fit = [row for row, length in zip(rows, lengths, strict=True) if length <= budget.max_tokens]
    return _pairs(fit)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and two runs at once go faster than two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
