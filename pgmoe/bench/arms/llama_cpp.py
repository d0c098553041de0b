"""llama.cpp, by its server inside this process (xllamacpp): the strongest peer on a CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pgmoe.bench.job import Answer, Job, Place
from pgmoe.errors import ConfigError, GenerationFailed

LoadMode = Literal["none", "mmap"]
GREEDY = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
"""Of a request to its server."""
_TOKEN = re.compile(r"<(\d+)>")


@dataclass(frozen=True)
class LlamaCppArm:
    """A GGUF file that write_gguf wrote: in memory (`none`), or mapped and read when touched (`mmap`)."""

    name: str
    gguf: str
    load_mode: LoadMode
    context: int = 512
    """Tokens of its KV cache."""
    num_threads: int | None = None
    """Its own number; the others' where None. What it maps is read by the threads that compute."""
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedLlamaCpp:
        """See Arm."""
        if place.device != "cpu":
            raise ConfigError(f"the arm {self.name!r} runs on a cpu, not on {place.device}")
        return LoadedLlamaCpp(self, self.num_threads or place.num_threads)


class LoadedLlamaCpp:
    """See LoadedArm.

    Every request extends the last one's prompt by one token and asks for one: the server keeps what it has
    computed and evaluates that token alone. Times are those that it reports itself.
    """

    def __init__(self, arm: LlamaCppArm, num_threads: int) -> None:
        self._gguf = arm.gguf
        self._server = start_server(arm.name, arm.gguf, arm.load_mode, arm.context, 1, num_threads)

    def warm_up(self, job: Job) -> Answer:
        """See LoadedArm."""
        return self.answer(job)

    def answer(self, job: Job) -> Answer:
        """See LoadedArm."""
        assert not job.beside, "one sequence at a time"
        steps = list(self._steps(job))
        tokens = tuple(token for token, _ in steps)
        return Answer(tokens, steps[0][1], sum(seconds for _, seconds in steps[1:]))

    def files(self) -> list[str]:
        """The GGUF file."""
        return [self._gguf]

    def close(self) -> None:
        """See LoadedArm."""
        self._server = None

    def _steps(self, job: Job) -> Iterator[tuple[int, float]]:
        """Each token and the seconds that it took."""
        context = list(job.prompt)
        for step in range(job.num_tokens):
            token, seconds = self._next(context, reuse=step > 0)
            yield token, seconds
            context.append(token if job.forced is None else job.forced[step])

    def _next(self, context: list[int], *, reuse: bool) -> tuple[int, float]:
        reply = self._server.handle_completions(
            {"prompt": context, "n_predict": 1, "cache_prompt": reuse, **GREEDY}
        )
        timings = reply.get("timings", {})
        if timings.get("prompt_n") != (1 if reuse else len(context)):
            raise GenerationFailed(f"llama.cpp did not compute what it was asked to: {reply}")
        (token,) = printed_tokens(reply["choices"][0]["text"])
        return token, (timings["prompt_ms"] + timings["predicted_ms"]) / 1000


def start_server(
    name: str, gguf: str, load_mode: LoadMode, context: int, num_slots: int, num_threads: int
) -> Any:
    """llama.cpp's server in this process, for the arm of this name: slots that share `context` tokens.

    Raises ConfigError where it is not installed.
    """
    try:
        xllamacpp: Any = import_module("xllamacpp")  # it has no types
    except ImportError:
        message = f'the arm {name!r} needs xllamacpp; pip install "pgmoe[peers]"'
        raise ConfigError(message) from None
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx = context
    params.n_parallel = num_slots
    params.n_gpu_layers = 0
    params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    params.load_mode = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{load_mode.upper()}")
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_ram_mib = 0  # no copies of former prompts, which would take of its memory
    params.n_ctx_checkpoints = 0
    params.ui = False
    params.verbosity = -1
    return xllamacpp.Server(params)


def printed_tokens(text: str) -> list[int]:
    """The tokens that this text names. Raises GenerationFailed for what `write_gguf` names no token."""
    tokens = _TOKEN.findall(text)
    if "".join(f"<{token}>" for token in tokens) != text.replace(" ", ""):
        raise GenerationFailed(f"llama.cpp answered with a token that the file does not name: {text!r}")
    return [int(token) for token in tokens]
