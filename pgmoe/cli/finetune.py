"""`pgmoe finetune`: train a Mixture of Experts on text, prompts with answers, or conversations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pgmoe.cli.console import training_bar


def finetune(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint, ordinary or pre-gated.")],
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Parquet files with text, prompt and completion, or messages; then the new folder."
        ),
    ],
    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="Parquet file, not trained on, to measure the loss on before weights are rounded as stored.",
        ),
    ] = None,
    evaluate_steps: Annotated[
        int | None, typer.Option("--eval-steps", help="Steps between evaluations.", show_default="at the end")
    ] = None,
    train: Annotated[
        Literal["all", "gates"], typer.Option(help="Weights to train; gates: routers alone.")
    ] = "all",
    gates_only: Annotated[bool, typer.Option("--gates-only", help="The same as --train gates.")] = False,
    rank: Annotated[
        int | None, typer.Option(help="Train routers and low-rank deltas of the experts instead.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Deltas are scaled by alpha / rank.", show_default="twice the rank")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Rows a pass.")] = 8,
    accumulation: Annotated[int, typer.Option(help="Passes a step.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Steps in all.", show_default="as --epochs needs")] = None,
    epochs: Annotated[float, typer.Option(help="Times to go through the data.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="After warm-up.")] = 1e-4,
    schedule: Annotated[
        Literal["constant", "cosine"], typer.Option(help="Of the learning rate; cosine falls to zero.")
    ] = "constant",
    warm_up_steps: Annotated[int, typer.Option(help="Steps in which the learning rate rises.")] = 0,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of a step's gradient.")] = 1.0,
    precision: Annotated[
        Literal["bf16", "fp32"], typer.Option(help="Of matrix products; what is trained stays float32.")
    ] = "bf16",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more work.")
    ] = False,
    aux_weight: Annotated[
        float | None, typer.Option(help="Of the load-balance loss.", show_default="the model's own")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Model with the same vocabulary, whose predictions are learnt.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of both models where they are compared.")] = 1.0,
    distil_weight: Annotated[float, typer.Option(help="The teacher's share of the loss, 0 to 1.")] = 0.5,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    device: Annotated[
        Literal["auto", "cpu"], typer.Option(help="auto: an accelerator if there is one.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Decides the order of the data and all that is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train MODEL on the first DATA; the last is the folder to write.

    Repeat an interrupted command to go on from its last checkpoint.
    """
    options = dict(locals())
    from pgmoe.errors import ConfigError
    from pgmoe.training.finetune import finetune as run
    from pgmoe.training.finetune_config import FinetuneConfig

    if len(data) < 2:
        raise ConfigError("name one Parquet file or more, and then the folder to write")
    del options["as_json"], options["gates_only"], options["data"], options["train"]
    *files, out = (path.expanduser() for path in data)
    options["evaluate"] = None if evaluate is None else evaluate.expanduser()
    config = FinetuneConfig(**options, data=tuple(files), out=out, train="gates" if gates_only else train)
    with training_bar(f"Training {model}") as progress:
        done = run(config, progress)
    if as_json:
        typer.echo(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return
    measured = "" if done.eval_loss is None else f", {done.eval_loss:.4f} on unseen data"
    typer.echo(
        f"{done.folder}: {done.num_steps:,} steps, {done.num_tokens:,} tokens, loss {done.loss:.4f}{measured}"
    )
    for count, what in (
        (done.num_cut, "cut to the length"),
        (done.num_dropped, "left out: nothing to learn in it"),
    ):
        if count:
            typer.echo(f"{count:,} rows {what}", err=True)
    if not done.plotted:
        typer.echo("no plot: that needs matplotlib; pip install 'pgmoe[bench]'", err=True)
