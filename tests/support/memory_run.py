"""How much memory an engine takes: `python -m tests.support.memory_run JSON`, in a process of its own.

JSON is [engine options, prompt tokens, answer tokens]. `max_running` such requests run side by side;
printed is a JSON object of bytes: `grown`, the peak of anonymous memory over that before the engine was made,
and the parts of the plan.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.request import Request, SamplingParams


def memory() -> dict[str, int]:
    with open("/proc/self/status", encoding="ascii") as table:
        lines = [line.split() for line in table if line.startswith(("VmHWM", "Rss"))]
    return {key.rstrip(":"): int(kib) * 1024 for key, kib, _ in lines}


def warm_up(dtype: torch.dtype) -> None:
    """Threads, and what torch's libraries take once."""
    a = torch.ones(1, 4, 64, 64, dtype=dtype)
    torch.nn.functional.scaled_dot_product_attention(a, a, a)
    torch.mv(a[0, 0], a[0, 0, 0])
    torch.nn.functional.linear(a, a[0, 0])


def answer(engine: Engine, num_prompt: int, num_answer: int) -> int:
    """Returns the most that mapped files took at the end of a step."""
    for n in range(engine.config.max_running):
        ids = torch.randint(5, 1000, (num_prompt,), generator=torch.Generator().manual_seed(n)).tolist()
        params = SamplingParams(max_tokens=num_answer, temperature=0.7, top_p=0.9, seed=n, ignore_eos=True)
        request = Request(request_id=str(n), prompt_token_ids=tuple(ids), params=params)
        engine.add(engine.accept(request))
    of_files = 0
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
        of_files = max(of_files, memory()["RssFile"])
    return of_files


def main(options: dict[str, Any], num_prompt: int, num_answer: int) -> None:
    config = EngineConfig.parse(options)
    torch.set_num_threads(2)
    for dtype in (torch.float32, torch.bfloat16):
        warm_up(dtype)
    before = memory()["RssAnon"]
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak counts from here
    engine = Engine(config)
    # What of the peak is no mapped file's is anonymous; the system may take pages of files back afterwards.
    of_files = answer(engine, num_prompt, num_answer)
    grown = memory()["VmHWM"] - of_files - before
    plan = {k: v for k, v in dataclasses.asdict(engine.memory).items() if k not in ("kv", "kv_shapes")}
    print(json.dumps({"grown": grown, "total": engine.memory.total_bytes, **plan}))


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
