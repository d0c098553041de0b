"""What a fine-tuning run is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pgmoe.errors import ConfigError

TrainedPart = Literal["all", "gates"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["bf16", "fp32"]
Device = Literal["auto", "cpu"]
_CHOICES = {"train": TrainedPart, "schedule": Schedule, "precision": Precision, "device": Device}
_AT_LEAST = {
    "length": 2,
    "batch_size": 1,
    "accumulation": 1,
    "checkpoint_steps": 1,
    "workers": 1,
    "warm_up_steps": 0,
    "seed": 0,
    "weight_decay": 0,
}
_POSITIVE = ("learning_rate", "clip", "temperature", "epochs")
_OPTIONAL = ("steps", "rank", "alpha", "evaluate_steps")
_PLACE = ("out", "checkpoint_steps", "device")  # of a command, not of its result


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Raises ConfigError for a value that cannot be honoured."""

    model: str
    """Folder or hub id of a checkpoint in safetensors, ordinary or pre-gated."""
    data: tuple[Path, ...]
    """Parquet files, all with the same kind of columns; see pgmoe.training.dataset."""
    out: Path
    """Folder to write; must not exist or be empty."""
    evaluate: Path | None = None
    """Parquet file that is not trained on; its loss is measured at the end and every `evaluate_steps`,
    before trained weights are rounded to the types that are written."""
    evaluate_steps: int | None = None
    train: TrainedPart = "all"
    """`gates`: routers alone. Only `all` beside `rank`, which trains routers and low-rank deltas."""
    rank: int | None = None
    """Of low-rank deltas of the experts; None trains the weights themselves."""
    alpha: float | None = None
    """Deltas are scaled by alpha / rank (arXiv 2106.09685); None is twice the rank. Only with a rank."""
    length: int = 256
    """Tokens of a row; longer ones are cut, and counted."""
    batch_size: int = 8
    """Rows a pass, of each worker."""
    accumulation: int = 1
    """Passes a step."""
    steps: int | None = None
    """None: as many as `epochs` need."""
    epochs: float = 1.0
    """Without effect beside `steps`."""
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    """What the rate does after warm-up; `cosine` falls to zero."""
    warm_up_steps: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    precision: Precision = "bf16"
    """Of matrix products, routers' among them; trained weights and the optimiser's state are float32 either
    way."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them."""
    aux_weight: float | None = None
    """Of the load-balance loss; None takes the checkpoint's own."""
    teacher: str | None = None
    """Folder or hub id of a model with the same vocabulary whose predictions are learnt."""
    temperature: float = 1.0
    """Both models' logits are divided by it where they are compared. Only with a teacher."""
    distil_weight: float = 0.5
    """0 to 1: share of the teacher's KL divergence in the loss; the rest is cross-entropy. Only with a
    teacher."""
    checkpoint_steps: int = 100
    """Steps between checkpoints, of which an interrupted run loses at most so many."""
    device: Device = "auto"
    """`auto`: an accelerator if there is one."""
    seed: int = 0
    workers: int = 1
    """Processes that train together; more than one needs `python -m deployments.train`."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(choices))}")
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {least} or more")
        for name in (*_POSITIVE, *(n for n in _OPTIONAL if getattr(self, n) is not None)):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.distil_weight <= 1:
            raise ConfigError(f"distil_weight is {self.distil_weight}; give 0 to 1")
        if self.aux_weight is not None and not self.aux_weight >= 0:
            raise ConfigError(f"aux_weight is {self.aux_weight}; give 0 or more")
        if not self.data:
            raise ConfigError("no data; name one Parquet file or more")
        self._check_effect()

    def _check_effect(self) -> None:
        """Raises ConfigError for options that would do nothing beside the others."""
        if self.evaluate_steps is not None and self.evaluate is None:
            raise ConfigError("evaluate_steps says how often to evaluate; name a file to evaluate on, too")
        if self.evaluate is not None and self.evaluate.resolve() in {path.resolve() for path in self.data}:
            raise ConfigError(f"{self.evaluate} is trained on, too; evaluate on another file")
        if self.rank is not None and self.train == "gates":
            raise ConfigError(f"train gates and rank {self.rank}: a rank trains experts; leave one out")
        if self.rank is None and self.alpha is not None:
            raise ConfigError(f"alpha is {self.alpha}, which scales low-rank deltas; give a rank, too")
        for name in ("temperature", "distil_weight"):
            value = getattr(self, name)
            if self.teacher is None and value != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"{name} is {value}, but there is no teacher; name one, or leave it out")

    @property
    def scale(self) -> float:
        """Of the low-rank deltas. Only with a rank."""
        assert self.rank is not None
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    def command(self) -> dict[str, Any]:
        """What decides the result, as JSON has it: two runs that differ in it are different runs."""
        fields = {name: value for name, value in asdict(self).items() if name not in _PLACE}
        fields["data"] = [str(path) for path in self.data]
        fields["evaluate"] = None if self.evaluate is None else str(self.evaluate)
        return fields
