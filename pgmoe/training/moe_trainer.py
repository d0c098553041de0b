"""transformers' Trainer with our loss, our figures, and checkpoints that hold only what is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer

from pgmoe.errors import TrainingDiverged
from pgmoe.training.checkpoints import mark_complete, remove_older
from pgmoe.training.objective import Objective, auxiliary, num_labelled
from pgmoe.training.trainable import take_over, trained_tensors

TRAINED = "trained.safetensors"
PARTS = ("ce", "kl", "aux")


@dataclass(frozen=True)
class Step:
    """One optimiser step that is done."""

    number: int
    """1 for the first."""
    num_steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    seconds_left: float


Progress = Callable[[Step], None]


class MoeTrainer(Trainer):
    """Losses are sums over all tokens of a step over their number; each auxiliary loss counts once a step.

    The families' own losses, which Trainer would take, add the auxiliary one of every pass in full where
    gradients are accumulated.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        teacher: PreTrainedModel | None = None,
        autocast: torch.dtype | None = None,
        progress: Progress | None = None,
        **kwargs: Any,
    ) -> None:
        """`autocast`: of matrix products, None for none; the rest as Trainer has it."""
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # has the labelled tokens of a step counted, whatever the model
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = objective.shift
        self._objective, self._teacher, self._autocast = objective, teacher, autocast
        self._progress = progress
        self._parts: dict[str, Tensor] = {}
        self._num_tokens = 0
        self._since = time.monotonic()
        self.last_evaluated = -1
        """The step after which `evaluate` was called last."""

    def compute_loss_context_manager(self) -> ExitStack:
        """Autocast of our own: accelerate's turns all outputs into float32, a copy of every logit."""
        stack = ExitStack()
        if self._autocast is not None:
            stack.enter_context(torch.autocast(self.args.device.type, self._autocast))
        return stack

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """See Trainer. Without `num_items_in_batch` the batch is one by itself."""
        labels = inputs["labels"]
        given = {name: value for name, value in inputs.items() if name != "labels"}
        if not self._objective.shift:
            core: Any = self.accelerator.unwrap_model(model)
            given["decoder_input_ids"] = core.prepare_decoder_input_ids_from_labels(labels)
        output = model(**given, output_router_logits=True)
        count = num_items_in_batch
        if count is None:
            count = max(1, num_labelled(labels, shift=self._objective.shift))
        passes = self.current_gradient_accumulation_steps if model.training else 1
        aux = auxiliary(self.model, output) / passes
        loss = self._objective.of(output.logits, labels, count, aux=aux, teacher_BSV=self._taught(given))
        replicas = self.accelerator.num_processes if model.training else 1
        if model.training:
            self._count(inputs)
            for name, part in zip(PARTS, (loss.ce * replicas, loss.kl, loss.aux), strict=True):
                if part is not None:
                    part = part * (replicas if name == "kl" else 1)
                    self._parts[name] = self._parts.get(name, torch.zeros_like(part)) + part
        # Replicas average their gradients; the sums are over the tokens of all of them.
        total = loss.total * replicas - (replicas - 1) * aux
        return (total, output) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, tokens and speed to what Trainer says of a step."""
        if "loss" in logs:
            self._complete(logs)
        super().log(logs, start_time)
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise TrainingDiverged(
                f"the loss of step {self.state.global_step} is {logs['loss']}; train with a lower learning rate"
            )
        if "loss" in logs and self._progress is not None:
            left = (self.state.max_steps - self.state.global_step) * logs["step_seconds"]
            self._progress(
                Step(
                    self.state.global_step,
                    self.state.max_steps,
                    logs["loss"],
                    logs["learning_rate"],
                    logs["tokens_per_s"],
                    left,
                )
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Cross-entropy by token, where Trainer's is the mean of batches' means."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        for batch in self.get_eval_dataloader():
            with torch.no_grad(), self.compute_loss_context_manager():
                _, output = self.compute_loss(self.model, batch, return_outputs=True)
                count = num_labelled(batch["labels"], shift=self._objective.shift)
                none = torch.zeros((), device=self.args.device)
                ce = self._objective.of(output.logits, batch["labels"], 1, aux=none).ce
            sums += torch.tensor([float(ce), count], dtype=torch.float64, device=self.args.device)
        total: Any = self.accelerator.reduce(sums, "sum")
        loss = float(total[0] / total[1])
        self._since = time.monotonic()
        found = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}
        self.log(dict(found))
        self.last_evaluated = self.state.global_step
        return found

    def _taught(self, given: dict[str, Any]) -> Tensor | None:
        if self._teacher is None:
            return None
        with torch.no_grad():
            logits: Tensor = self._teacher(**given).logits
            return logits

    def _count(self, inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        self._num_tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        if not self._objective.shift:
            self._num_tokens += num_labelled(inputs["labels"], shift=False)

    def _complete(self, logs: dict[str, float]) -> None:
        for name, part in self._parts.items():
            logs[name] = float(self.accelerator.reduce(part, "mean"))
        count: Any = self.accelerator.reduce(torch.tensor(self._num_tokens, device=self.args.device), "sum")
        now = time.monotonic()
        before = next((row for row in reversed(self.state.log_history) if "tokens" in row), {})
        logs["step_seconds"] = now - self._since
        logs["seconds"] = before.get("seconds", 0.0) + logs["step_seconds"]
        logs["tokens_per_s"] = int(count) / max(logs["step_seconds"], 1e-9)
        logs["tokens"] = before.get("tokens", 0) + int(count)
        self._parts, self._num_tokens, self._since = {}, 0, now

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            mark_complete(folder)
            remove_older(folder)
        self._since = time.monotonic()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.contiguous() for name, tensor in trained_tensors(self.model).items()}
            save_file(tensors, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        take_over(self.model, load_file(Path(resume_from_checkpoint) / TRAINED))
