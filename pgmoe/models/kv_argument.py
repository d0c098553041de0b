"""What transformers' models call the KV cache that they take and return."""

from __future__ import annotations

import inspect

from torch import nn


def kv_argument(model: nn.Module) -> str:
    """Name of `forward`'s argument and a model's output's field: `cache`, before 5.24 `past_key_values`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
