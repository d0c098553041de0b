"""Fine-tuning of a Mixture of Experts, ordinary or pre-gated, by transformers' Trainer.

`finetune` is the whole; `train` is the part of it that a worker runs where several train together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from pgmoe.errors import ConfigError, UnsupportedModel
from pgmoe.models.checkpoint import Checkpoint, resolve_folder
from pgmoe.models.tokenizer import load_tokenizer
from pgmoe.new_folder import check_new_folder
from pgmoe.training.checkpoints import check_command, is_trained, newest_checkpoint
from pgmoe.training.dataset import Collator, read_rows
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.finetune_result import Finetuned, keep_trained, write_result
from pgmoe.training.moe_trainer import MoeTrainer
from pgmoe.training.objective import Objective
from pgmoe.training.step_figures import Progress
from pgmoe.training.trainable import load_trainable, load_whole, quiet, stored_type, trained_tensors
from pgmoe.work_folder import work_folder

Run = Callable[[FinetuneConfig, Path], None]
"""Does what `train` does, wherever."""


def finetune(
    config: FinetuneConfig, progress: Progress | None = None, *, run: Run | None = None
) -> Finetuned:
    """Train and write `config.out`: a Hugging Face folder with the log and plot of the training.

    `out` appears only when it is complete. An interrupted run, also a killed one, goes on from its last
    complete checkpoint when called again with the same config, and on a CPU gives what an uninterrupted one
    gives, to the bit. `run` trains, by default `train` in this process. The weights are in memory. Raises
    ConfigError, CheckpointError or one of its kinds, and TrainingDiverged.
    """
    check_new_folder(config.out)
    checkpoint = open_checkpoint(config)
    with work_folder(config.out, wait=False) as work:
        check_command(work, config, checkpoint)
        if not is_trained(work):
            if run is None:
                train(config, work, progress)
            else:
                run(config, work)
        return write_result(config, checkpoint, work)


def open_checkpoint(config: FinetuneConfig) -> Checkpoint:
    """The model's files, if they can be trained. Raises ConfigError, CheckpointError or one of its kinds."""
    checkpoint = Checkpoint.open(config.model)
    if checkpoint.pack is not None or checkpoint.encoding != "plain":
        kind = "a pack" if checkpoint.pack is not None else "quantised"
        raise UnsupportedModel(f"{config.model} is {kind}; name the checkpoint that it was made of")
    stored_type(checkpoint)
    if config.workers > 1 and config.gradient_checkpointing and checkpoint.config.get("is_encoder_decoder"):
        raise ConfigError(
            f"{config.model} is an encoder-decoder: with gradient_checkpointing {config.workers} workers "
            "would wait for gradients of experts that no token chose; leave it out, or train with one worker"
        )
    return checkpoint


def train(config: FinetuneConfig, work: Path, progress: Progress | None = None) -> None:
    """Train in `work` from its newest checkpoint on, until what was trained and the log are there.

    Where several workers train together each calls this, with the process group made and `work` shared.
    Raises as `finetune` does, and ConfigError if there are not `config.workers` of them.
    """
    checkpoint = open_checkpoint(config)
    tokenizer = _tokenizer(checkpoint)
    arguments = _arguments(config, work)
    if arguments.world_size != config.workers:
        raise ConfigError(
            f"workers is {config.workers}, but {arguments.world_size} train; "
            "several are started by `python -m deployments.train`"
        )
    with quiet(), _without_denormals():
        model = load_trainable(config, checkpoint.folder)
        seq2seq = bool(model.config.is_encoder_decoder)
        rows = read_rows(config.data, tokenizer, config.length, encoder_decoder=seq2seq)
        held_out = None
        if config.evaluate is not None:
            held_out = read_rows([config.evaluate], tokenizer, config.length, encoder_decoder=seq2seq)
        trainer = MoeTrainer(
            model,
            arguments,
            data_collator=Collator(_pad_id(tokenizer)),
            train_dataset=rows,
            eval_dataset=held_out,
            objective=Objective(not seq2seq, config.distil_weight, config.temperature),
            autocast=torch.bfloat16 if config.precision == "bf16" else None,
            progress=progress,
            teacher=_teacher(config, tokenizer, arguments.device, seq2seq),
        )
        found = newest_checkpoint(work)
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
        if held_out is not None:
            trainer.evaluate()
        if trainer.is_world_process_zero():
            keep_trained(work, trained_tensors(model), trainer.state.log_history, rows)


def _arguments(config: FinetuneConfig, work: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine" if config.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=config.warm_up_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        eval_strategy="no" if config.evaluate_steps is None else "steps",
        eval_steps=config.evaluate_steps,
        logging_steps=1,  # Trainer forgets the sums of steps not logged when it resumes
        logging_nan_inf_filter=False,
        average_tokens_across_devices=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=config.device == "cpu",
        dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process trains on one device, else it is copied in threads
    return arguments


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer is None:
        raise ConfigError(f"{checkpoint.folder} has no tokenizer; copy its files there")
    return tokenizer


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token will do: it is masked."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _teacher(
    config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device, seq2seq: bool
) -> PreTrainedModel | None:
    """Frozen, in the precision of products. Raises ConfigError if it speaks another vocabulary."""
    if config.teacher is None:
        return None
    folder = resolve_folder(config.teacher)
    own = load_tokenizer(folder)
    if own is None or own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{config.teacher} has another vocabulary than {config.model}; a teacher needs the same"
        )
    model = load_whole(folder, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    if bool(model.config.is_encoder_decoder) != seq2seq:
        raise ConfigError(
            f"of {config.teacher} and {config.model}, one is an encoder-decoder; both must be, or none"
        )
    model.requires_grad_(False).train(False)
    model.to(device)  # type: ignore[arg-type]
    return model


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Adam's moments of rarely chosen experts decay into denormals, which are slow on a CPU.

    It holds for this thread and those it starts: threads of OpenMP that run already keep their setting.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
