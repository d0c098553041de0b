"""The error for logits of which no token can be chosen."""

from __future__ import annotations

import math

from torch import Tensor

from pgmoe.errors import NonFiniteLogits


def non_finite(logits_V: Tensor) -> NonFiniteLogits:
    """The error for these logits: their own fault, or that of what shaped them if one of them is finite."""
    if math.isfinite(logits_V.max().item()):
        return NonFiniteLogits(
            "response_format, logit_bias and penalties together leave no finite score: no token can be chosen"
        )
    num_nan, num_inf = int(logits_V.isnan().sum()), int(logits_V.isinf().sum())
    return NonFiniteLogits(
        f"of {logits_V.numel()} logits {num_nan} are NaN and {num_inf} infinite: no token can be chosen. "
        "Check the model's weights; if it runs in float16, load it in bfloat16 or float32"
    )
