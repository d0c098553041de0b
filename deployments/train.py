"""Fine-tuning by several workers, of one machine or a Ray cluster: `python -m deployments.train config.yaml`.

The file has the options of `pgmoe.training.finetune_config.FinetuneConfig`. Every worker holds the whole
model and reads its share of each step's rows (torch's DistributedDataParallel; gloo on CPUs, NCCL on GPUs).
Model, data and `out` are on a disk that all of them see. Needs the extra `train`.

Ray Train's `prepare_trainer` is not called: all it does is to let Ray Data feed a Trainer, and ours has its
rows in memory.
"""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pgmoe.errors import ConfigError, PgmoeError
from pgmoe.training.finetune import finetune, train
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.finetune_result import Finetuned
from pgmoe.training.step_figures import Step


def read_config(path: Path) -> FinetuneConfig:
    """Read the file; paths become absolute, since workers run elsewhere. Raises ConfigError."""
    path = _whole(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no options; see pgmoe/training/finetune_config.py")
    known = {field.name for field in fields(FinetuneConfig)}
    if unknown := sorted(set(map(str, content)) - known):
        raise ConfigError(f"{path}: unknown {', '.join(unknown)}; options are {', '.join(sorted(known))}")
    try:
        config = TypeAdapter(FinetuneConfig).validate_python(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {faults}") from None
    return _absolute(config)


def finetune_together(config: FinetuneConfig) -> Finetuned:
    """`pgmoe.training.finetune.finetune` by `config.workers` workers of Ray Train.

    Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine. Raises as `finetune` does.
    """
    return finetune(config, run=_run)


def _run(config: FinetuneConfig, work: Path) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=True)
    try:
        use_gpu = config.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        TorchTrainer(
            _train_loop,
            train_loop_config={"config": config, "work": str(work.absolute())},
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
            run_config=RunConfig(name="ray", storage_path=str(work.absolute())),
        ).fit()
    except TrainingFailedError as error:
        ours = [e for e in getattr(error, "worker_failures", {}).values() if isinstance(e, PgmoeError)]
        if ours:
            raise ours[0] from error
        raise
    finally:
        if started:
            ray.shutdown()


def _train_loop(options: dict[str, Any]) -> None:
    """What each worker runs, with the process group made."""
    from ray.train import get_context

    first = get_context().get_world_rank() == 0
    train(options["config"], Path(options["work"]), _tell if first else None)


def _tell(step: Step) -> None:
    line = f"{step.number}/{step.num_steps}  loss {step.loss:.4f}  {step.tokens_per_s:,.0f} tokens/s"
    sys.stderr.write(f"{line}  {step.seconds_left:.0f} s left\n")  # what is printed Ray Train shows twice


def _absolute(config: FinetuneConfig) -> FinetuneConfig:
    def model(name: str) -> str:
        return str(folder) if (folder := _whole(Path(name))).is_dir() else name

    return replace(
        config,
        model=model(config.model),
        teacher=None if config.teacher is None else model(config.teacher),
        data=tuple(map(_whole, config.data)),
        out=_whole(config.out),
        evaluate=None if config.evaluate is None else _whole(config.evaluate),
    )


def _whole(path: Path) -> Path:
    """Absolute, `~` expanded. Raises ConfigError for the home of nobody."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from error


def main() -> None:
    """Train as the file says; pgmoe's own errors end it with a message and status 2."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deployments.train config.yaml")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars would mix with the lines
    try:
        done = finetune_together(read_config(Path(sys.argv[1])))
    except PgmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{done.folder}: {done.num_steps:,} steps, {done.num_tokens:,} tokens, loss {done.loss:.4f}")


if __name__ == "__main__":
    main()
