"""transformers' Trainer with our loss, our figures, and checkpoints that hold only what is trained."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from pgmoe.errors import TrainingDiverged
from pgmoe.training.checkpoints import mark_complete, remove_older
from pgmoe.training.objective import Objective, auxiliary, num_labelled
from pgmoe.training.step_figures import Progress, Step, StepFigures
from pgmoe.training.trainable import take_over, trained_tensors

TRAINED = "trained.safetensors"


class MoeTrainer(Trainer):
    """Losses are sums over all tokens of a step over their number; each auxiliary loss counts once a step.

    The families' own losses, which Trainer would take, add the auxiliary one of every pass in full where
    gradients are accumulated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        *,
        objective: Objective,
        teacher: PreTrainedModel | None = None,
        autocast: torch.dtype | None = None,
        progress: Progress | None = None,
        **others: Any,
    ) -> None:
        """`autocast`: of matrix products, None for none; `others` are Trainer's."""
        super().__init__(model, arguments, **others)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # has the labelled tokens of a step counted, whatever the model
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = objective.shift
        self._core, self._workers = model, self.accelerator.num_processes
        self._objective, self._teacher, self._autocast = objective, teacher, autocast
        self._progress, self._figures = progress, StepFigures(self.accelerator)
        self._evaluated: dict[int, dict[str, float]] = {}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer would train a step more when it resumes from the last one."""
        if self.state.global_step == self._initial_global_step:
            self._figures.pause()  # preparation is no part of the first step
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        trainer: Any = super()
        trainer._run_epoch(*args, **kwargs)

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
        """See Trainer, which evaluates through `evaluate` alone, so this is always a pass of a step."""
        given = self._given(inputs)
        output = model(**given, output_router_logits=True)
        assert num_items_in_batch is not None
        count = torch.as_tensor(num_items_in_batch).clamp(min=1)
        aux = auxiliary(self._core, output) / self.current_gradient_accumulation_steps
        loss = self._objective.of(
            output.logits, inputs["labels"], count, aux=aux, teacher_BSV=self._taught(given)
        )
        self._figures.add(loss, self._num_tokens(inputs))
        # Workers average their gradients, and the sums are over the tokens of all of them.
        total = (loss.total - aux) * self._workers + aux
        return (total, output) if return_outputs else total

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Cross-entropy by token, where Trainer's is the mean of batches' means. Once a step at most."""
        step = self.state.global_step
        if step not in self._evaluated:
            loss = self._held_out_loss()
            self._evaluated[step] = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}
            self.log(dict(self._evaluated[step]))
            self._figures.pause()
        return self._evaluated[step]

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        sums = torch.zeros(2, dtype=torch.float64)
        none = torch.zeros((), device=self.args.device)
        self._core.train(False)
        for given in self._own_held_out():
            batch = self._prepare_inputs(given)
            with self.compute_loss_context_manager():
                logits = self._core(**self._given(batch)).logits
                ce = self._objective.of(logits, batch["labels"], 1, aux=none).ce
            sums += torch.tensor([float(ce), num_labelled(batch["labels"], shift=self._objective.shift)])
        accelerator: Any = self.accelerator
        total = accelerator.reduce(sums.to(self.args.device, torch.float32), "sum").double()
        return float(total[0] / total[1])

    def _own_held_out(self) -> DataLoader[Any]:
        """Batches of this worker's share. Trainer's loader repeats rows until all workers have as many."""
        accelerator, rows = self.accelerator, cast(Any, self.eval_dataset)
        share = range(accelerator.process_index, len(rows), accelerator.num_processes)
        return DataLoader(
            Subset(rows, share),
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # or it draws from that of the training
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add parts of the loss, tokens and speed to what Trainer says. Raises TrainingDiverged."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        figures = self._figures.take(self.state.log_history)
        super().log(logs | figures, start_time)
        done, loss = self.state.global_step, logs["loss"]
        for what, name in (("loss", "loss"), ("norm of the gradient", "grad_norm")):
            if not math.isfinite(logs.get(name, 0.0)):  # the step's checkpoint is not written yet
                raise TrainingDiverged(
                    f"the {what} of step {done} is {logs[name]}; train with a lower learning rate, or with "
                    "warm-up"
                )
        if self._progress is not None:
            steps = [row["seconds"] for row in self.state.log_history[-20:] if "seconds" in row]
            pace_s = (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else steps[0]
            left_s = (self.state.max_steps - done) * pace_s
            rate, speed = logs["learning_rate"], figures["tokens_per_s"]
            self._progress(Step(done, self.state.max_steps, loss, rate, speed, left_s))

    def _given(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What a model reads of a batch."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        if not self._objective.shift:
            core: Any = self._core
            given["decoder_input_ids"] = core.prepare_decoder_input_ids_from_labels(inputs["labels"])
        return given

    def _taught(self, given: dict[str, Any]) -> Tensor | None:
        if self._teacher is None:
            return None
        with torch.no_grad():
            logits: Tensor = self._teacher(**given).logits
            return logits

    def _num_tokens(self, inputs: dict[str, Any]) -> int:
        mask = inputs.get("attention_mask")
        read = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        return read if self._objective.shift else read + num_labelled(inputs["labels"], shift=False)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        accelerator: Any = self.accelerator
        super()._save_checkpoint(model, trial)
        accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            mark_complete(folder)
            remove_older(folder)
        self._figures.pause()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.contiguous() for name, tensor in trained_tensors(self._core).items()}
            save_file(tensors, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        take_over(self._core, load_file(Path(resume_from_checkpoint) / TRAINED))
