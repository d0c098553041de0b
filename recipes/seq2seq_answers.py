"""What an encoder-decoder answers, and what it loses on given answers. Pre-gated ones route so.

Shape letters: B batch, S prompt, T answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgmoe.errors import ConfigError
from pgmoe.models.tokenizer import load_tokenizer
from pgmoe.training.dataset import Collator, read_rows
from pgmoe.training.finetune_config import Device
from pgmoe.training.objective import Objective, num_labelled
from pgmoe.training.trainable import load_whole, quiet

_BATCH_SIZE = 100
_LONGEST = 1_024


class Answerer:
    """A model in float32, on an accelerator if there is one and `device` allows it."""

    def __init__(self, folder: Path, device: Device = "cpu") -> None:
        """Raises CheckpointError or one of its kinds, ConfigError without a tokenizer."""
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise ConfigError(f"{folder} has no tokenizer; copy its files there")
        self._tokenizer: PreTrainedTokenizerBase = tokenizer
        with quiet():
            self._model: PreTrainedModel = load_whole(folder, torch.float32)
        self._model.train(False)
        accelerator = torch.accelerator.current_accelerator() if device == "auto" else None
        self._device = accelerator or torch.device("cpu")
        self._model.to(self._device)  # type: ignore[arg-type]

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy, one for each prompt, in their order."""
        found: dict[int, str] = {}
        model: Any = self._model
        for places in _alike([len(prompt) for prompt in prompts]):
            batch = self._tokenizer([prompts[place] for place in places], padding=True, return_tensors="pt")
            ids_BT = model.generate(
                input_ids=batch["input_ids"].to(self._device),
                attention_mask=batch["attention_mask"].to(self._device),
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
            )
            said = self._tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
            found |= dict(zip(places, (text.strip() for text in said), strict=True))
        return [found[place] for place in range(len(prompts))]

    @torch.inference_mode()
    def mean_loss(self, path: Path) -> float:
        """Nats a token of the completions in a Parquet file, each given what is before it."""
        rows = read_rows([path], self._tokenizer, _LONGEST, encoder_decoder=True)
        pad_id = self._tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        collate, model, objective = Collator(pad_id), self._model, Objective(shift=False)
        total, count = 0.0, 0
        for places in _alike([len(rows[place].input_ids) for place in range(len(rows))]):
            batch = collate([rows[place] for place in places])
            given = {name: tensor.to(self._device) for name, tensor in batch.items()}
            labels_BT = given.pop("labels")
            shifted_BT = model.prepare_decoder_input_ids_from_labels(labels_BT)  # type: ignore[operator]
            logits = model(**given, decoder_input_ids=shifted_BT, use_cache=False).logits
            total += float(objective.of(logits, labels_BT, 1, aux=torch.zeros(())).ce)
            count += num_labelled(labels_BT, shift=False)
        return total / count


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows of like length, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    for start in range(0, len(order), _BATCH_SIZE):
        yield order[start : start + _BATCH_SIZE]
