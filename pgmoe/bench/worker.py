"""One arm in a process of its own, whose memory is then its own."""

from __future__ import annotations

import multiprocessing
import pickle
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Generic

from pgmoe.bench.arms.base import AnswerT, AnyArm, TaskT
from pgmoe.bench.control_group import memory_limit
from pgmoe.bench.job import Failed, Load, Measured, Place
from pgmoe.bench.worker_process import serve
from pgmoe.errors import PgmoeError

STOP_TIMEOUT_S = 30.0


class Worker(Generic[TaskT, AnswerT]):
    """Starts an arm's process; while nobody asks, that process sleeps."""

    def __init__(self, arm: AnyArm[TaskT, AnswerT], place: Place, limit_bytes: int | None = None) -> None:
        """Start loading, within a memory limit if one is given. Use as a context manager, or it all stays.

        The limit counts the process's memory and its page cache. Raises ConfigError where none can be set.
        """
        self.arm = arm
        self._group = ExitStack()
        limit = self._group.enter_context(memory_limit(limit_bytes)) if limit_bytes is not None else None
        # A spawned process has loaded nothing yet: the peak of its memory is the arm's.
        context = multiprocessing.get_context("spawn")
        self._connection, childs_end = context.Pipe()
        self._process = context.Process(
            target=serve, args=(pickle.dumps(arm), place, limit, childs_end), daemon=True
        )
        self._process.start()
        childs_end.close()

    def loaded(self) -> Load:
        """Wait until it has loaded. Raises PgmoeError if it could not."""
        answer = self._receive()
        assert isinstance(answer, Load)
        return answer

    def measure(self, job: TaskT) -> Measured[AnswerT]:
        """Do a job and wait for it; the first one warms up. Raises PgmoeError if it fails."""
        limit = self.arm.most_tokens
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone, and how is for _receive to say
            self._connection.send(job if limit is None else job.first(limit))
        answer = self._receive()
        assert isinstance(answer, Measured)
        return answer

    def close(self) -> None:
        """Let the process end; kill it if it does not."""
        with suppress(OSError):  # it may be gone already
            self._connection.send(None)
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._group.close()

    def __enter__(self) -> Worker[TaskT, AnswerT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Load | Measured[AnswerT]:
        try:
            answer: Load | Measured[AnswerT] | Failed = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(STOP_TIMEOUT_S)
            raise PgmoeError(
                f"arm {self.arm.name!r}: its process ended with status {self._process.exitcode}; "
                "-9 usually means that memory ran out"
            ) from None
        if isinstance(answer, Failed):
            raise PgmoeError(f"arm {self.arm.name!r}: {answer.message}\n{answer.trace}".rstrip())
        return answer
