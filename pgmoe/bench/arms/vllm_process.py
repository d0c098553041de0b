"""The program that vLLM's interpreter runs: settings come first on its input, then jobs; answers go out.

That interpreter has no library of ours. Of this package it finds, by the place of this file, the modules that
need none.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


def _find_our_package() -> None:
    """Let `pgmoe` be imported from where this file lies, and nothing else from there."""
    folder = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location(
        "pgmoe", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules["pgmoe"] = importlib.util.module_from_spec(spec)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose names would hide others
    _find_our_package()

from pgmoe.bench.arms.closed_loop import ClosedLoop, Sent  # noqa: E402
from pgmoe.bench.streams import StreamsAnswer, StreamsJob  # noqa: E402

KV_GIB = 2
"""Memory for keys and values: of 64 streams of 500 tokens where a token takes 64 KiB."""


@dataclass(frozen=True)
class VllmSettings:
    """What its engine is made with."""

    model: str
    num_streams: int
    longest: int
    """Most tokens of a prompt and its answer."""


def environment(num_threads: int, inherited: dict[str, str]) -> dict[str, str]:
    """Of its process: as many threads as the others have, its engine in that process, nothing of ours."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTHON")}
    return kept | {
        "OMP_NUM_THREADS": str(num_threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class VllmEngine:
    """Its engine, stepped by us."""

    def __init__(self, settings: VllmSettings) -> None:
        vllm: Any = importlib.import_module("vllm")  # only its interpreter has it
        self._vllm = vllm
        self._delta = importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA
        arguments = vllm.EngineArgs(
            model=settings.model,
            skip_tokenizer_init=True,
            max_model_len=settings.longest,
            max_num_seqs=settings.num_streams,
            enable_prefix_caching=False,
        )
        self._engine: Any = vllm.LLMEngine.from_engine_args(arguments)
        self._num_jobs = 0

    def answer(self, job: StreamsJob) -> StreamsAnswer:
        """Do a job."""
        self._num_jobs += 1
        loop = ClosedLoop(job)
        for sent in loop.begin():
            self._add(sent)
        while not loop.is_done:
            for output in self._engine.step():
                (said,) = output.outputs
                following = loop.take(output.request_id.partition("/")[2], list(said.token_ids))
                if following is not None:
                    self._add(following)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return loop.answer()

    def _add(self, sent: Sent) -> None:
        params = self._vllm.SamplingParams(
            temperature=0,
            max_tokens=sent.ask.num_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._delta,
        )
        self._engine.add_request(
            f"{self._num_jobs}/{sent.key}", {"prompt_token_ids": list(sent.ask.prompt)}, params
        )


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Make the engine that comes first on `requests`, say so, and answer jobs until there are none."""
    engine = VllmEngine(_load(requests))
    _reply(None, replies)
    while True:
        try:
            job = _load(requests)
        except EOFError:
            return
        _reply(engine.answer(job), replies)


def _load(requests: IO[bytes]) -> Any:
    return pickle.load(requests)  # from our own parent


def _reply(what: object, replies: IO[bytes]) -> None:
    pickle.dump(what, replies)
    replies.flush()


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    serve(sys.stdin.buffer, replies)
