"""The whole way to the default model, from text to the small files that ship; goes on where it was cut short.

`python -m recipes.default_model WORK OUT --data FOLDER` makes, in WORK: the upcycled model of equal experts,
the same with low-rank deltas trained on text (so that experts differ), that one rewired (level 1) and both of
them with their gates alone trained on, by the same budget; what sets them apart from SmolLM2 goes to OUT.
The defaults are those of the shipped files. On a GPU more steps, rows and a larger rank cost little.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pgmoe.cli.console import training_bar
from pgmoe.errors import ConfigError
from pgmoe.training.checkpoints import checksum, write_synced
from pgmoe.training.default_model import build_default_model
from pgmoe.training.finetune import finetune
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.pregate import pregate
from recipes.lm_text import HELD_OUT, TRAIN
from recipes.ship import ship

STAGES = ("equal", "experts", "start", "pre-gated", "conventional")
"""Folders of the models that are made, in this order."""


@dataclass(frozen=True)
class Budget:
    """How much is trained."""

    rank: int = 8
    """Of the experts' deltas."""
    steps: int = 200
    """Of the experts."""
    gate_steps: int = 60
    """Of the gates, for each of both models."""
    batch_size: int = 8
    """Rows of 256 tokens a step."""
    learning_rate: float = 1e-3
    """It falls to zero along a cosine."""


def build(work: Path, out: Path, data: Path, budget: Budget) -> None:
    """Every stage that is not done yet. Raises as `finetune` and `note` do."""
    note(work, data, budget)
    equal, experts, start, pre_gated, conventional = (work / name for name in STAGES)
    if not equal.exists():
        build_default_model(equal, kind="equal")
    _train(equal, experts, data, budget, rank=budget.rank)
    if not start.exists():
        pregate(str(experts), start, level=1)
    _train(start, pre_gated, data, budget)
    _train(experts, conventional, data, budget)
    ship(experts, pre_gated, conventional, out)


def note(work: Path, data: Path, budget: Budget) -> None:
    """Note what is made in `work`.

    Raises ConfigError where something else was noted before, and where models are that nothing was noted of.
    """
    plan = {**asdict(budget), **{name: checksum(data / name) for name in (TRAIN, HELD_OUT)}}
    path = work / "plan.json"
    if not path.exists():
        if found := [name for name in STAGES if (work / name).exists()]:
            raise ConfigError(
                f"{work} holds {', '.join(found)} of an unknown plan; remove them, or name another folder"
            )
        work.mkdir(parents=True, exist_ok=True)
        write_synced(path.with_suffix(".new"), json.dumps(plan, indent=2))
        path.with_suffix(".new").rename(path)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in plan.items()
        if before.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{work} holds a model of another plan: {'; '.join(changed)}; repeat that one to go on, or name "
            "another folder"
        )


def _train(model: Path, out: Path, data: Path, budget: Budget, rank: int | None = None) -> None:
    """The experts' deltas and the gates where there is a rank, else the gates."""
    if out.exists():
        return
    config = FinetuneConfig(
        model=str(model),
        data=(data / TRAIN,),
        evaluate=data / HELD_OUT,
        out=out,
        rank=rank,
        train="all" if rank else "gates",
        steps=budget.steps if rank else budget.gate_steps,
        warm_up_steps=10 if rank else 5,
        batch_size=budget.batch_size,
        learning_rate=budget.learning_rate,
        schedule="cosine",
        aux_weight=0.01,
        checkpoint_steps=20,
        seed=0 if rank else 1,
    )
    with training_bar(f"Training {out.name}") as progress:
        finetune(config, progress)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("build/data/default"))
    for name in ("rank", "steps", "gate_steps", "batch_size"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Budget, name))
    parser.add_argument("--learning-rate", type=float, default=Budget.learning_rate)
    args = parser.parse_args()
    budget = Budget(args.rank, args.steps, args.gate_steps, args.batch_size, args.learning_rate)
    build(args.work, args.out, args.data, budget)


if __name__ == "__main__":
    main()
