"""Answers in OpenAI's shapes: what no running model says on demand."""

from __future__ import annotations

import json
import math

from deployments.openai_format import ChatFormat, TextFormat
from deployments.openai_usage import usage_json
from pgmoe.request import RequestOutput, TokenLogprob, Usage

IMPOSSIBLE = TokenLogprob(token_id=3, text="no", logprob=-math.inf, top=((4, "yes", -0.5),))
ONE = Usage(
    prompt_tokens=10, completion_tokens=3, expert_hits=1, expert_misses=2, expert_bytes=30,
    expert_stall_s=0.5, cached_tokens=8, queue_s=0.25, time_to_first_token_s=1.0, decode_s=2.0,
    max_inter_token_s=1.5, num_preemptions=1,
)  # fmt: skip
OTHER = Usage(
    prompt_tokens=10, completion_tokens=6, expert_hits=10, expert_misses=20, expert_bytes=300,
    expert_stall_s=5.0, cached_tokens=8, queue_s=0.25, time_to_first_token_s=1.0, decode_s=5.0,
    max_inter_token_s=3.0, num_preemptions=2,
)  # fmt: skip


def finished(index: int, usage: Usage, *entries: TokenLogprob) -> RequestOutput:
    return RequestOutput(
        request_id="1", text="no", index=index, logprobs=entries, finish_reason="stop", usage=usage
    )


def test_the_log_probability_of_what_is_impossible_is_valid_json() -> None:
    for style in (ChatFormat("1", "m", True), TextFormat("1", "m", True)):
        text = json.dumps(style.whole([finished(0, ONE, IMPOSSIBLE)]), allow_nan=False)
        assert "-9999.0" in text


def test_of_tokens_with_the_same_text_the_likeliest_is_named() -> None:
    top = ((4, "\ufffd", -0.5), (5, "\ufffd", -1.0), (6, "a", -2.0))
    entry = TokenLogprob(token_id=7, text="\ufffd", logprob=-3.0, top=top)
    (choice,) = TextFormat("1", "m", True).whole([finished(0, ONE, entry)])["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -0.5, "a": -2.0}]


def test_the_cost_of_several_answers_is_that_of_all_with_the_prompt_once() -> None:
    answers = [finished(0, ONE), finished(1, OTHER)]
    whole = ChatFormat("1", "m", False).whole(answers)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert whole["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 9,
        "total_tokens": 19,
        "prompt_tokens_details": {"cached_tokens": 8},
        "experts": {"hits": 11, "misses": 22, "bytes": 330, "stall_s": 5.5},
        "timing": {
            "queue_s": 0.25,
            "time_to_first_token_s": 1.0,
            "mean_inter_token_s": 1.0,
            "max_inter_token_s": 3.0,
            "num_preemptions": 3,
        },
    }
    style = ChatFormat("1", "m", False)
    for answer in reversed(answers):
        style.chunk(answer)
    assert style.usage_chunk()["usage"] == whole["usage"]


def test_one_token_has_no_time_between_tokens() -> None:
    timing = usage_json([Usage(prompt_tokens=1, completion_tokens=1, time_to_first_token_s=0.5)])["timing"]
    assert timing["mean_inter_token_s"] is None
    assert timing["time_to_first_token_s"] == 0.5
