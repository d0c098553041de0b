"""What transformers' models call the KV cache that they take and return."""

from __future__ import annotations

import inspect

from torch import nn


def kv_argument(model: nn.Module) -> str:
    """Name of `forward`'s argument, and of a model's output's field: `cache`, `past_key_values` before 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
