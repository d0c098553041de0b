"""One arm in a process of its own, whose memory is then its own: the parent's handle, the child's loop."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType

import torch

from pgmoe.bench.arms.base import Arm, LoadedArm
from pgmoe.bench.job import Failed, Job, Load, Measured, Memory, Place
from pgmoe.bench.page_cache import drop_from_page_cache, weight_files
from pgmoe.errors import PgmoeError

STOP_TIMEOUT_S = 30.0


class Worker:
    """Starts an arm's process; while nobody asks, that process sleeps."""

    def __init__(self, arm: Arm, place: Place) -> None:
        """Start loading. Use as a context manager, or the process stays."""
        self.arm = arm
        # A spawned process has loaded nothing yet: the peak of its memory is the arm's.
        context = multiprocessing.get_context("spawn")
        self._connection, childs_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(arm, place, childs_end), daemon=True)
        self._process.start()
        childs_end.close()

    def loaded(self) -> Load:
        """Wait until it has loaded. Raises PgmoeError if it could not."""
        answer = self._receive()
        assert isinstance(answer, Load)
        return answer

    def measure(self, job: Job) -> Measured:
        """Do a job and wait for it; the first one warms up. Raises PgmoeError if it fails."""
        limit = self.arm.most_tokens
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

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Load | Measured:
        try:
            answer: Load | Measured | Failed = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(STOP_TIMEOUT_S)
            raise PgmoeError(
                f"arm {self.arm.name!r}: its process ended with status {self._process.exitcode}; "
                "-9 usually means that memory ran out"
            ) from None
        if isinstance(answer, Failed):
            raise PgmoeError(f"arm {self.arm.name!r}: {answer.message}\n{answer.trace}")
        return answer


def read_memory(device: str) -> Memory:
    """This process's memory now."""
    kib = {}
    with open("/proc/self/status", encoding="ascii") as table:
        for line in table:
            key, _, value = line.partition(":")
            if key in ("VmRSS", "RssFile", "VmHWM"):
                kib[key] = int(value.split()[0])
    on_device = None
    if torch.device(device).type != "cpu":
        on_device = int(torch.get_device_module(torch.device(device)).max_memory_allocated())
    return Memory(kib["VmRSS"] * 1024, kib["RssFile"] * 1024, kib["VmHWM"] * 1024, on_device)


def _serve(arm: Arm, place: Place, connection: Connection) -> None:
    """The child: load, then a job at a time until None comes."""
    try:
        drop_from_page_cache(weight_files(place.model))
        begin = time.perf_counter()
        loaded = arm.open(place)
        seconds = time.perf_counter() - begin
        try:
            connection.send(Load(seconds, read_memory(place.device)))
            _work(loaded, place, connection)
        finally:
            loaded.close()
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except Exception as error:  # whatever happened, the parent must hear of it
        connection.send(Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))


def _work(loaded: LoadedArm, place: Place, connection: Connection) -> None:
    do = loaded.warm_up
    while (job := connection.recv()) is not None:
        drop_from_page_cache([*weight_files(place.model), *loaded.files()])
        answer = do(job)
        connection.send(Measured(answer, read_memory(place.device)))
        do = loaded.answer
