"""The decode loop that all arms share where the answer is given beforehand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.job import Answer, Job
from pgmoe.models.kv_argument import kv_argument


@torch.inference_mode()
def answer_stepwise(
    model: PreTrainedModel,
    device: torch.device,
    job: Job,
    clock: TokenClock,
    before_pass: Callable[[], None] = lambda: None,
) -> Answer:
    """The prompt in one forward, then a token a step, forced where the job says so, else greedy.

    The host reads every token before it starts the next step, as sampling does. `before_pass` is called
    before each forward pass. Where several sequences go together the clock takes the first one's tokens.
    """
    prompts = [job.prompt, *(row[: len(job.prompt)] for row in job.beside)]
    ids = torch.tensor(prompts, device=device)
    cache, name = None, kv_argument(model)
    for step in range(job.num_tokens):
        before_pass()
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{name: cache})
        cache = getattr(output, name)
        token, *_ = output.logits[:, -1].argmax(-1).tolist()
        clock.take(token)
        ids = torch.tensor(_fed(job, step, token), device=device)
    return clock.answer()


def _fed(job: Job, step: int, token: int) -> list[list[int]]:
    """Of every sequence the token after so many steps."""
    if job.forced is None:
        return [[token]]
    return [[job.forced[step]], *([row[len(job.prompt) + step]] for row in job.beside)]
