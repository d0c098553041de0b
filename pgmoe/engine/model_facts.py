"""What a model says of itself: its context, its vocabulary, where answers begin and end."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pgmoe.errors import ConfigError

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


class ModelFacts:
    """Of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)

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

    def begin(self, prompt_token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """What the decoder is fed first: the prompt, or an encoder-decoder's start tokens."""
        if not self.is_encoder_decoder:
            return prompt_token_ids
        generation, config = self._model.generation_config, self._model.config
        start = generation.decoder_start_token_id
        if start is None:
            start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = generation.bos_token_id if generation.bos_token_id is not None else 0
        forced = generation.forced_bos_token_id
        return (start,) if forced is None else (start, forced)
