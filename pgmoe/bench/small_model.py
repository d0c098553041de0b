"""A small OLMoE trained from scratch on a text of one's own, for routing that was learnt and not planted.

It writes no good prose. It stands for trained models where their routing is studied: which experts follow
which, and how well a cache or a guess does. Shape letters: B batch, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import OlmoeForCausalLM, PreTrainedTokenizerFast

from pgmoe.bench.random_model import SEED, OlmoeShape
from pgmoe.errors import ConfigError
from pgmoe.new_folder import new_folder

SMALL_MOE = OlmoeShape(4096, 256, 8, 4, 32, 4, 128)
"""60 MB, 0.2 MB an expert."""
PROMPTS = "prompts.txt"
"""In the model's folder: beginnings of documents that training has not seen, one a line."""
_HELD_OUT = 50  # one document in so many
_NUM_PROMPTS, _PROMPT_WORDS = 16, 24
_TOKENIZER_SPECIAL = ["<unk>", "<pad>", "<eos>"]  # at the places where OlmoeShape.config has them

Progress = Callable[[str, int, int], None]
"""Called with (what happened, steps done, steps in all)."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    num_steps: int = 600
    batch: int = 8
    """Sequences a step."""
    length: int = 128
    """Tokens of a sequence."""
    peak_rate: float = 2e-3
    """Learning rate after `warm_up` steps; it falls to a tenth along a cosine."""
    warm_up: int = 50

    def rate(self, step: int) -> float:
        """The learning rate of this step, 0 to num_steps - 1."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.num_steps - self.warm_up)
        return self.peak_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Trained:
    """What training did, measured on documents that it has not seen."""

    perplexity_before: float
    perplexity_after: float
    num_tokens: int
    """Tokens trained on, repetitions included."""


def train_small_moe(
    text: Path,
    folder: Path,
    shape: OlmoeShape = SMALL_MOE,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train on a UTF-8 file, a document a line; `folder` gets the checkpoint, its tokenizer and prompts.

    Weights are float32 while they are trained, matrix products bfloat16, what is saved bfloat16. The loss has
    the family's own load-balance term. Raises ConfigError for a text too short, or if `folder` is taken.
    """
    schedule = schedule or Schedule()
    documents = _read(text)
    if len(documents) < 2 * _HELD_OUT:
        raise ConfigError(f"{text} has {len(documents)} lines, each a document; give {2 * _HELD_OUT} or more")
    held_out = documents[::_HELD_OUT]
    seen = [document for index, document in enumerate(documents) if index % _HELD_OUT]
    with new_folder(folder, need_bytes=_saved_bytes(shape)) as partial:
        tokenizer = _train_tokenizer(seen, shape.vocab_size)
        seen_T, held_out_T = _encode(tokenizer, seen), _encode(tokenizer, held_out)
        if min(len(seen_T), len(held_out_T)) <= schedule.length:
            raise ConfigError(
                f"{text} has {len(seen_T)} tokens to train on and {len(held_out_T)} to test with; more than "
                f"{schedule.length} of both are needed"
            )
        model = _new_model(shape, len(tokenizer))
        before = perplexity(model, held_out_T, schedule)
        with _without_denormals():
            _train(model, seen_T, schedule, progress)
        after = perplexity(model, held_out_T, schedule)
        model.bfloat16().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        prompts = (" ".join(document.split()[:_PROMPT_WORDS]) for document in held_out[:_NUM_PROMPTS])
        (partial / PROMPTS).write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return Trained(before, after, schedule.num_steps * schedule.batch * schedule.length)


@torch.no_grad()
def perplexity(model: OlmoeForCausalLM, tokens_T: Tensor, schedule: Schedule) -> float:
    """Of the tokens in rows of the schedule's length, each predicted from those before it in its row."""
    model.eval()  # type: ignore[no-untyped-call]
    rows = tokens_T[: len(tokens_T) // schedule.length * schedule.length].view(-1, schedule.length)
    total, count = 0.0, 0
    for ids_BS in torch.split(rows, schedule.batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids_BS, use_cache=False).logits[:, :-1]
        target = ids_BS[:, 1:].flatten()
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), target, reduction="sum")
        )
        count += len(target)
    return math.exp(total / count)


def _read(text: Path) -> list[str]:
    try:
        return [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the text {text}: {error}") from error


def _saved_bytes(shape: OlmoeShape) -> int:
    with torch.device("meta"):
        return sum(p.numel() * 2 for p in OlmoeForCausalLM(shape.config()).parameters())


def _train_tokenizer(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_TOKENIZER_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    unknown, pad, end = _TOKENIZER_SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token=unknown, pad_token=pad, eos_token=end
    )


def _encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> Tensor:
    """All documents as one row of tokens, each followed by the end token."""
    ids = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    return torch.tensor([token for row in ids for token in (*row, tokenizer.eos_token_id)])


def _new_model(shape: OlmoeShape, vocab_size: int) -> OlmoeForCausalLM:
    config = shape.config()
    config.vocab_size = vocab_size
    config.output_router_logits = True  # has the load-balance term added to the loss
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = OlmoeForCausalLM(config)
    model.set_experts_implementation("grouped_mm")  # eager's loop over experts is three times as slow
    return model


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Adam's moments of rarely chosen experts decay into denormals, which are slow on a CPU."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _train(model: OlmoeForCausalLM, tokens_T: Tensor, schedule: Schedule, progress: Progress | None) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    for step, ids_BS in enumerate(_batches(tokens_T, schedule)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(f"loss {loss.item():.3f}", step + 1, schedule.num_steps)


def _batches(tokens_T: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """Windows (B, S) that start anywhere in the tokens."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(schedule.num_steps):
        starts = torch.randint(len(tokens_T) - schedule.length, (schedule.batch,), generator=generator)
        yield tokens_T[starts[:, None] + torch.arange(schedule.length)]
