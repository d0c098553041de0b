"""Runs the model for one sequence: prompt in chunks, then a token a step."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pgmoe.errors import ConfigError
from pgmoe.models.kv_argument import kv_argument

DEFAULT_CONTEXT = 4096
"""Tokens, for models that name no limit (relative positions)."""


def context_of(config: PretrainedConfig) -> int:
    """The longest sequence that a model's positions allow, in tokens."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "max_position_embeddings", None) or DEFAULT_CONTEXT)


def check_context(max_model_len: int | None, context: int) -> int:
    """The limit to serve with. Raises ConfigError for more than the model's context."""
    if max_model_len is not None and max_model_len > context:
        raise ConfigError(
            f"max_model_len {max_model_len}: the model's context is {context}; give at most that"
        )
    return max_model_len or context


class Fed(Protocol):
    """What the runner needs of a sequence."""

    prompt_token_ids: tuple[int, ...]
    pending: list[int]
    """Token ids that the model has not seen yet; a step takes some off."""
    kv_cache: Any
    """transformers' own cache object; None before the first step."""
    encoder_outputs: Any
    """Of an encoder-decoder model; computed in the first step."""


class ModelRunner:
    """Feeds sequences to a transformers model and keeps each one's KV cache in the sequence."""

    def __init__(self, model: PreTrainedModel, device: torch.device, prefill_chunk: int) -> None:
        self._model = model
        self._device = device
        self._prefill_chunk = prefill_chunk
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._kv_argument = kv_argument(model)
        self._only_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def context(self) -> int:
        """The longest sequence that the model's positions allow."""
        return context_of(self._model.config)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        embeddings = cast(nn.Embedding, self._model.get_input_embeddings())
        return embeddings.num_embeddings

    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer, by the generation config, else the model's."""
        eos = self._model.generation_config.eos_token_id
        if eos is None:
            eos = getattr(self._model.config, "eos_token_id", None)
        return frozenset([eos] if isinstance(eos, int) else eos or ())

    def begin(self, prompt_token_ids: tuple[int, ...]) -> list[int]:
        """What the decoder is fed first: the prompt, or an encoder-decoder's start tokens."""
        if not self.is_encoder_decoder:
            return list(prompt_token_ids)
        generation, config = self._model.generation_config, self._model.config
        start = generation.decoder_start_token_id
        if start is None:
            start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = generation.bos_token_id if generation.bos_token_id is not None else 0
        forced = generation.forced_bos_token_id
        return [start] if forced is None else [start, forced]

    @torch.inference_mode()
    def step(self, sequence: Fed) -> Tensor | None:
        """Compute what is pending: logits (V,) of the next token, or None while the prompt goes on."""
        chunk = sequence.pending[: self._prefill_chunk]
        ids = torch.tensor([chunk], device=self._device)
        options = {self._kv_argument: sequence.kv_cache, "use_cache": True}
        if self.is_encoder_decoder:
            if sequence.encoder_outputs is None:
                sequence.encoder_outputs = self._encode(sequence.prompt_token_ids)
            output = self._model(encoder_outputs=sequence.encoder_outputs, decoder_input_ids=ids, **options)
        else:
            keep = {"logits_to_keep": 1} if self._only_last else {}
            output = self._model(input_ids=ids, **keep, **options)
        sequence.kv_cache = getattr(output, self._kv_argument)
        del sequence.pending[: len(chunk)]
        return None if sequence.pending else output.logits[0, -1]

    def _encode(self, prompt_token_ids: tuple[int, ...]) -> object:
        ids = torch.tensor([prompt_token_ids], device=self._device)
        return self._model.get_encoder()(input_ids=ids, return_dict=True)
