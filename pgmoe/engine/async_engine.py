"""The engine behind an event loop: a thread steps, coroutines listen."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine, StepOutput
from pgmoe.errors import EngineClosed, InvalidRequest
from pgmoe.metrics.stats import EngineStats
from pgmoe.request import ModelInfo, Request, RequestOutput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Listener:
    """Who waits for a request's pieces, and on which event loop."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[RequestOutput | Exception]

    def tell(self, item: RequestOutput | Exception) -> bool:
        """Whether there is still somebody to tell."""
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:  # its event loop was closed
            return False
        return True


class AsyncEngine:
    """Streams answers to coroutines while one thread of its own runs the model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._listeners: dict[str, _Listener] = {}
        self._wake = threading.Event()
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pgmoe-step", daemon=True)
        self._thread.start()

    @classmethod
    def from_config(cls, config: EngineConfig) -> AsyncEngine:
        """Load the model and start. Blocks; raises ConfigError or CheckpointError."""
        return cls(Engine(config))

    @property
    def config(self) -> EngineConfig:
        """What it was built from."""
        return self._engine.config

    @property
    def info(self) -> ModelInfo:
        """What it serves."""
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        """What it has counted so far."""
        return self._engine.stats

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one."""
        return self._engine.tokenizer

    async def generate(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Stream the pieces of all `n` answers, each one's finished piece its last.

        Closing the iterator, or cancelling its task, stops the generation at the next step. Raises
        InvalidRequest, PromptTooLong or EngineOverloaded before the first piece; DeadlineExceeded,
        WeightReadError or EngineClosed at any time.
        """
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue())
        if self._listeners.setdefault(request.request_id, listener) is not listener:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", "request_id")
        try:
            self.check_health()  # now that whoever ends the engine after this check tells the listener
            sequence = await asyncio.to_thread(self._engine.accept, request)  # tokenising may take a while
            self._engine.add(sequence)
            self._wake.set()
            unfinished = request.params.n
            while unfinished:
                item = await listener.queue.get()
                if isinstance(item, Exception):
                    raise item
                unfinished -= item.finished
                yield item
        finally:
            self._engine.abort(request.request_id)
            self._wake.set()
            self._listeners.pop(request.request_id, None)  # not before: the id would be free for another

    def check_health(self) -> None:
        """Raise EngineClosed if the engine is shut down or its thread has died."""
        if self._failure is not None:
            raise EngineClosed(f"the engine has failed: {self._failure!r}; restart it") from self._failure
        if self._closing:
            raise EngineClosed("the engine is shut down")

    def close(self) -> None:
        """Finish the step under way, end all requests with EngineClosed, free files. May be called again."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._engine.close()

    def _run(self) -> None:
        try:
            while not self._closing:
                if not self._engine.has_work:
                    self._wake.wait()
                    self._wake.clear()
                    continue
                for output in self._engine.step():
                    self._tell(output)
        except BaseException as error:
            logger.exception("the engine's step thread died")
            self._failure = error
        reason = "is shut down" if self._failure is None else f"has failed: {self._failure!r}"
        for listener in list(self._listeners.values()):
            listener.tell(EngineClosed(f"the engine {reason}"))

    def _tell(self, output: StepOutput) -> None:
        listener = self._listeners.get(output.request_id)
        if listener is None:
            return
        item = output.error if output.error is not None else output.piece
        assert item is not None
        if not listener.tell(item):
            self._listeners.pop(output.request_id, None)
            self._engine.abort(output.request_id)
