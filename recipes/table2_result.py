"""The experiment's result: every run, means by task and level, and under which conditions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.quality_result import Estimate, QualityCell, QualityResult, QualityRun
from pgmoe.bench.result import current_commit, now
from pgmoe.training.training_log import TABLE
from recipes.example import TEST, TRAIN
from recipes.scores import Interval
from recipes.table2_folder import Experiment
from recipes.table2_plan import PAPER, UNTUNED, Plan

NAME = "quality-switch"
_Group = tuple[str, int, str | None]


def result_of(plan: Plan, experiment: Experiment) -> QualityResult:
    """Of all runs of the plan, which must be done."""
    rows = experiment.rows()
    runs = tuple(rows[run.name] for run in plan.runs())
    metrics = {**{task.name: task.metrics for task in plan.tasks}, UNTUNED: ("loss",)}
    return QualityResult(
        name=NAME,
        date=now(),
        commit=current_commit(),
        machine=describe_machine(weight_files(experiment.pretrained)),
        conditions=_conditions(plan, experiment),
        start=plan.start,
        metrics=metrics,
        runs=runs,
        cells=tuple(cells(runs, metrics)),
        paper=tuple(figure for figure in PAPER if figure.task in metrics),
    )


def cells(runs: Sequence[QualityRun], metrics: Mapping[str, Sequence[str]]) -> Iterable[QualityCell]:
    """Means over the seeds of each task, level and start."""
    groups: dict[_Group, dict[int, Mapping[str, float]]] = defaultdict(dict)
    for run in runs:
        groups[run.task, run.level, run.start][run.seed] = run.scores
    for (task, level, start), by_seed in groups.items():
        conventional = groups.get((task, 0, None), {}) if level else {}
        for metric in metrics[task]:
            scores = [found[metric] for found in by_seed.values()]
            gains = [by_seed[s][metric] - conventional[s][metric] for s in by_seed if s in conventional]
            gain = _estimate(gains) if gains else None
            yield QualityCell(task, metric, level, start, len(scores), _estimate(scores), gain)


def _estimate(values: Sequence[float]) -> Estimate:
    if len(values) == 1:
        return Estimate(values[0], None)
    interval = Interval.of(values)
    return Estimate(interval.mean, interval.half_width)


def _conditions(plan: Plan, experiment: Experiment) -> dict[str, str]:
    conditions = {
        "model": f"Switch Transformer, {plan.size.words()}; conventional from its first step on",
        "pre-training": (
            f"{plan.pretraining.words()}, {_num_tokens(experiment.pretrained)} of span corruption"
        ),
        "before the runs": (
            f"{plan.multi_task.words()}, {_num_tokens(experiment.multi_task)}, of all tasks together; "
            "conventional, too"
        ),
    }
    for task in plan.tasks:
        num_train, num_test = (_num_rows(experiment, task.name, part) for part in (TRAIN, TEST))
        conditions[f"task {task.name}"] = (
            f"{task.budget.words()}, of {num_train}; {num_test} test questions, answered greedily in float32"
        )
    conditions[f"task {UNTUNED}"] = (
        f"loss on {_num_rows(experiment, UNTUNED, TEST)} unseen rows before any fine-tuning"
    )
    conditions["recipe"] = (
        f"all weights, AdamW, cosine to zero after warm-up, products in {plan.precision}; at each level the "
        "same pre-trained checkpoint, budget, and order of the data for the same seed"
    )
    conditions["pre-gating"] = f"of the {plan.scope}; new gates start as `{plan.start}` of `pgmoe pregate`"
    conditions["data"] = "texts and questions that `make data` writes, see recipes/README.md"
    return conditions


def _num_tokens(trained: Path) -> str:
    return f"{pq.read_table(trained / TABLE).to_pylist()[-1]['tokens'] / 1e6:.1f} M tokens"


def _num_rows(experiment: Experiment, task: str, part: str) -> int:
    return int(pq.ParquetFile(experiment.data(task, part)).metadata.num_rows)
