"""The paper's Table II and Figure 13 at small scale: `python -m recipes.table2 run|show|plot`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pgmoe.bench.quality_plot import plot_quality
from pgmoe.bench.quality_report import render_quality
from pgmoe.bench.quality_result import QualityResult, QualityRun
from pgmoe.bench.result_file import load_result
from pgmoe.cli.console import training_bar
from pgmoe.errors import ConfigError, PgmoeError
from pgmoe.pre_gating import Scope
from pgmoe.training.finetune_config import Device
from pgmoe.training.pregate import Start
from recipes import extractive
from recipes.table2_folder import Experiment
from recipes.table2_plan import Plan
from recipes.table2_result import result_of
from recipes.table2_run import prepare, pretrain, train_together
from recipes.table2_work import WORK, work, work_together

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
_DEFAULTS = Plan(data=Path("build/data"))
ResultFile = Annotated[Path, typer.Argument(help="A result, benchmarks/results/quality-switch-….json.")]


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Folder that `make data` wrote.")] = _DEFAULTS.data,
    folder: Annotated[Path, typer.Option(help="The experiment's own.")] = Path("build/quality-switch"),
    results: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("benchmarks/results"),
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each task and level.")] = len(_DEFAULTS.seeds),
    scope: Annotated[Scope, typer.Option(help="Stacks to pre-gate.")] = _DEFAULTS.scope,
    start: Annotated[Start, typer.Option(help="Where new gates start from.")] = _DEFAULTS.start,
    compare_starts: Annotated[bool, typer.Option(help="Also run every start, at level 1.")] = False,
    pretrain_steps: Annotated[int, typer.Option(min=1)] = _DEFAULTS.pretraining.steps,
    multi_task_steps: Annotated[int, typer.Option(min=1)] = _DEFAULTS.multi_task.steps,
    device: Annotated[Device, typer.Option(help="auto: an accelerator if there is one.")] = _DEFAULTS.device,
) -> None:
    """Do what is not done yet; the same command goes on with an interrupted experiment."""
    plan = replace(
        _DEFAULTS,
        data=data,
        seeds=tuple(range(seeds)),
        scope=scope,
        start=start,
        compare_starts_on=extractive.NAME if compare_starts else None,
        pretraining=replace(_DEFAULTS.pretraining, steps=pretrain_steps),
        multi_task=replace(_DEFAULTS.multi_task, steps=multi_task_steps),
        device=device,
    )
    with _told_errors():
        print(carry_out_all(plan, Experiment(folder), workers).save(results))


def carry_out_all(plan: Plan, experiment: Experiment, num_workers: int = 1) -> QualityResult:
    """From the data to the result, going on where it was. Raises PgmoeError or one of its kinds."""
    experiment.note(plan)
    prepare(plan, experiment)
    if not experiment.pretrained.exists():
        with training_bar("pre-training") as progress:
            pretrain(plan, experiment, progress)
    if not experiment.multi_task.exists():
        with training_bar("all tasks together") as progress:
            train_together(plan, experiment, progress)
    if num_workers > 1:
        work_together(plan, experiment, num_workers)
    else:
        work(plan, experiment, _tell)
    return result_of(plan, experiment)


@app.command(name=WORK, hidden=True)
def work_on(folder: Path) -> None:
    """One of several processes that share the runs of an experiment that is prepared."""
    experiment = Experiment(folder)
    with _told_errors():
        work(experiment.plan(), experiment, _tell)


@app.command()
def show(result: ResultFile) -> None:
    """Print the table as Markdown."""
    with _told_errors():
        print(render_quality(_load(result)))


@app.command()
def plot(
    result: ResultFile, out: Annotated[Path | None, typer.Argument(help="A .png or .svg.")] = None
) -> None:
    """Draw scores over levels; beside the result unless OUT is named."""
    with _told_errors():
        path = out or result.with_suffix(".png")
        plot_quality(_load(result), path)
        print(path)


def _load(path: Path) -> QualityResult:
    result = load_result(path)
    if not isinstance(result, QualityResult):
        raise ConfigError(f"{path} is of another benchmark; `pgmoe bench plot` and `show` read it")
    return result


def _tell(row: QualityRun, done: int, total: int) -> None:
    scores = ", ".join(f"{name} {score:.2f}" for name, score in row.scores.items())
    line = f"{done}/{total} {row.name}: {scores}; {row.seconds:.0f} s"
    Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _told_errors() -> Iterator[None]:
    try:
        yield
    except PgmoeError as error:
        Console(stderr=True).print(f"Error: {error}", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
