"""llama.cpp's server with a slot for every stream and continuous batching."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pgmoe.bench.arms.closed_loop import ClosedLoop, Sent
from pgmoe.bench.arms.llama_cpp import GREEDY, printed_tokens, start_server
from pgmoe.bench.job import Place
from pgmoe.bench.streams import StreamsAnswer, StreamsJob
from pgmoe.errors import ConfigError, GenerationFailed

_Piece = tuple[str, str | Exception]
"""Of which request, and what its server said."""


@dataclass(frozen=True)
class LlamaCppStreamsArm:
    """A GGUF file that write_gguf wrote, in memory."""

    gguf: str
    num_streams: int
    longest: int
    """Most tokens of a prompt and its answer."""
    name: str = "llama.cpp"
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedLlamaCppStreams:
        """See AnyArm."""
        if place.device != "cpu":
            raise ConfigError(f"the arm {self.name!r} runs on a cpu, not on {place.device}")
        context = self.num_streams * (-(-self.longest // 32) + 1) * 32  # it rounds a slot's share down
        server = start_server(self.name, self.gguf, "none", context, self.num_streams, place.num_threads)
        return LoadedLlamaCppStreams(server, self.gguf)


class LoadedLlamaCppStreams:
    """See AnyLoadedArm. Each request waits in a thread of its own, as its server's connections do."""

    def __init__(self, server: Any, gguf: str) -> None:
        self._server = server
        self._gguf = gguf

    def warm_up(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm."""
        return self.answer(job)

    def answer(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm."""
        pieces: SimpleQueue[_Piece] = SimpleQueue()
        loop = ClosedLoop(job)
        threads = [self._start(sent, pieces) for sent in loop.begin()]
        while not loop.is_done:
            key, said = pieces.get()
            if isinstance(said, Exception):
                raise said
            following = loop.take(key, printed_tokens(said))
            if following is not None:
                threads.append(self._start(following, pieces))
        for thread in threads:
            thread.join()
        return loop.answer()

    def files(self) -> list[str]:
        """The GGUF file."""
        return [self._gguf]

    def close(self) -> None:
        """See AnyLoadedArm."""
        self._server = None

    def _start(self, sent: Sent, pieces: SimpleQueue[_Piece]) -> Thread:
        thread = Thread(target=self._ask, args=(sent, pieces), daemon=True)
        thread.start()
        return thread

    def _ask(self, sent: Sent, pieces: SimpleQueue[_Piece]) -> None:
        def take(chunk: dict[str, Any]) -> bool:
            """Called by the server; whether it shall stop."""
            if "choices" in chunk:
                pieces.put((sent.key, chunk["choices"][0]["text"]))
                return False
            pieces.put((sent.key, GenerationFailed(f"llama.cpp answered: {chunk}")))
            return True

        wanted = {"prompt": list(sent.ask.prompt), "n_predict": sent.ask.num_tokens, "stream": True}
        try:
            self._server.handle_completions({**wanted, "cache_prompt": False, **GREEDY}, take)
        except Exception as error:  # whatever it is: who waits must hear of it
            pieces.put((sent.key, error))
