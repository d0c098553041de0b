"""What transformers' models call the KV cache that they take and return."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel


def kv_argument(model: PreTrainedModel) -> str:
    """Name of `forward`'s argument and of its output's field: `cache`, `past_key_values` before 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
