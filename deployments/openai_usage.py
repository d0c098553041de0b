"""What the answers to a request cost, as OpenAI's `usage` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgmoe.request import Usage


def usage_json(usages: Sequence[Usage]) -> dict[str, Any]:
    """All answers (one or more) to one request together: the prompt counts once.

    Beside OpenAI's own fields are `experts` and `timing`, whose mean is over the tokens of all answers.
    """
    first = usages[0]
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": first.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "experts": {
            "hits": sum(usage.expert_hits for usage in usages),
            "misses": sum(usage.expert_misses for usage in usages),
            "bytes": sum(usage.expert_bytes for usage in usages),
            "stall_s": sum(usage.expert_stall_s for usage in usages),
        },
        "timing": _timing(usages),
    }


def _timing(usages: Sequence[Usage]) -> dict[str, Any]:
    first_tokens = [u.time_to_first_token_s for u in usages if u.time_to_first_token_s is not None]
    num_intervals = sum(max(0, usage.completion_tokens - 1) for usage in usages)
    decode_s = sum(usage.decode_s for usage in usages)
    return {
        "queue_s": usages[0].queue_s,
        "time_to_first_token_s": min(first_tokens, default=None),
        "mean_inter_token_s": decode_s / num_intervals if num_intervals else None,
        "max_inter_token_s": max(usage.max_inter_token_s for usage in usages),
        "num_preemptions": sum(usage.num_preemptions for usage in usages),
    }
