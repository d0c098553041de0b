"""A model whose attention reads keys and values from pages: which can be, and how one is run.

Shape letters: T tokens of the pass, D model width, V vocabulary, R rows whose logits are wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput

from pgmoe.models.attention import PAGED_ATTENTION, AttentionPages, PagedCache, PagedPair, register
from pgmoe.models.kv_argument import kv_argument
from pgmoe.models.nllb_moe import set_apart

_BY_LENGTH = ("dynamic", "longrope")
"""Rotary positions that depend on the longest sequence of a pass: its sequences cannot be packed."""


class PagedModel:
    """Runs packed tokens of many sequences through a transformers model. One pass at a time.

    Outside of its passes the model is as it was.
    """

    def __init__(self, model: PreTrainedModel, pages: AttentionPages) -> None:
        self._model = model
        self._pages = pages
        self._argument = kv_argument(model)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._num_layers = num_layers(model.config)
        self._configs = _attention_configs(model)
        self._apart = set_apart(model, pages)
        register()

    def encode(self, prompt_token_ids: Sequence[int]) -> Tensor:
        """An encoder-decoder's prompt, alone -> (1, T, D)."""
        ids_1T = torch.tensor([prompt_token_ids], device=self._model.device)
        output = self._model.get_encoder()(input_ids=ids_1T, return_dict=True)
        encoded: Tensor = output[0]
        return encoded

    def run(self, token_ids_T: Tensor, rows_R: Tensor, new_prompts: Sequence[Tensor] = ()) -> Tensor:
        """One pass; the pages have been told of it. Logits (R, V) of these tokens.

        `new_prompts`: of an encoder-decoder, what `encode` made of the prompts that are not in the pages yet,
        in the order of their sequences.
        """
        with self._on_pages():
            if self.is_encoder_decoder:
                return self._decode(token_ids_T, rows_R, new_prompts)
            return self._read(token_ids_T, rows_R)

    def _read(self, token_ids_T: Tensor, rows_R: Tensor) -> Tensor:
        cache = PagedCache(self._pages)
        output = self._model(
            input_ids=token_ids_T[None],
            position_ids=self._pages.positions[None],
            use_cache=True,
            logits_to_keep=rows_R,
            paged=cache,
            **{self._argument: cache},
        )
        logits: Tensor = output.logits[0]
        return logits

    def _decode(self, token_ids_T: Tensor, rows_R: Tensor, new_prompts: Sequence[Tensor]) -> Tensor:
        """Each token is a row of its own: tokens of a row compete for room in an expert."""
        pair = PagedPair(self._pages, self._num_layers, new_prompts=bool(new_prompts))
        if new_prompts:
            encoded = torch.cat(list(new_prompts), dim=1)
        else:  # it is not looked at, but None would mean that there is nothing to attend to
            encoded = torch.empty(1, 1, 1, device=token_ids_T.device)
        output = self._model(
            encoder_outputs=MoEModelOutput(last_hidden_state=encoded),
            decoder_input_ids=token_ids_T[:, None],
            use_cache=True,
            paged=pair.self_attention_cache,
            **{self._argument: pair},
        )
        logits: Tensor = output.logits[:, 0][rows_R]
        return logits

    @contextmanager
    def _on_pages(self) -> Iterator[None]:
        """The model's attention is ours inside."""
        before = [config._attn_implementation for config in self._configs]
        for config in self._configs:
            config._attn_implementation = PAGED_ATTENTION
        for module in self._apart:
            module.apart = True
        try:
            yield
        finally:
            for module in self._apart:
                module.apart = False
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation = implementation


def num_layers(config: PretrainedConfig) -> int:
    """Of the decoder."""
    for name in ("num_decoder_layers", "decoder_layers"):
        if config.is_encoder_decoder and getattr(config, name, None):
            return int(getattr(config, name))
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def depends_on_length(config: PretrainedConfig) -> bool:
    """Whether a token's positions are encoded by the length of what it runs with."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # by layer types, in some
    return any(kind.get("rope_type") in _BY_LENGTH for kind in kinds)


def ignore_length(model: nn.Module) -> None:
    """Have a meta model encode positions alike for all lengths, which it cannot tell."""
    for module in model.modules():
        if getattr(module, "rope_type", None) in _BY_LENGTH:
            module.rope_type = "default"  # type: ignore[assignment]


def _attention_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Those that name the attention of the decoder. One that an encoder shares is made two."""
    decoder: Any = model
    if model.config.is_encoder_decoder:
        decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    if model.config.is_encoder_decoder and decoder.config is model.get_encoder().config:
        config = copy.copy(decoder.config)
        for module in decoder.modules():
            if isinstance(getattr(module, "config", None), PretrainedConfig):
                module.config = config
    configs = [getattr(module, "config", None) for module in decoder.modules()]
    return list({id(c): c for c in configs if isinstance(c, PretrainedConfig)}.values())
