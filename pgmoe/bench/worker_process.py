"""The child of a Worker: it joins its control group, loads an arm, and does one job at a time.

Nothing heavy is imported here: an arm's libraries come with the arm, which is unpickled inside the group,
so that a peer's memory holds no library of ours.
"""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from pgmoe.bench.arms.base import AnyLoadedArm
from pgmoe.bench.control_group import ControlGroup
from pgmoe.bench.job import Failed, Load, Measured, Memory, Place
from pgmoe.bench.page_cache import drop_from_page_cache, weight_files
from pgmoe.errors import PgmoeError


def serve(arm: bytes, place: Place, group: ControlGroup | None, connection: Connection) -> None:
    """Load the pickled arm, then answer a job at a time until None comes."""
    try:
        if group is not None:
            group.join()
        drop_from_page_cache(weight_files(place.model))
        unpickled = pickle.loads(arm)  # from our own parent
        begin = time.perf_counter()
        loaded: AnyLoadedArm[Any, object] = unpickled.open(place)
        seconds = time.perf_counter() - begin
        try:
            connection.send(Load(seconds, read_memory(place.device)))
            _work(loaded, place, connection)
        finally:
            loaded.close()
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except PgmoeError as error:  # it says what to do
        connection.send(Failed(str(error), ""))
    except Exception as error:  # whatever happened, the parent must hear of it
        connection.send(Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))


def read_memory(device: str) -> Memory:
    """This process's memory now, with that of the processes that it has started."""
    kib: Counter[str] = Counter()
    for process in _family("self"):
        with suppress(FileNotFoundError), open(f"/proc/{process}/status", encoding="ascii") as table:
            for line in table:
                key, _, value = line.partition(":")
                if key in ("VmRSS", "RssFile", "VmHWM"):
                    kib[key] += int(value.split()[0])
    on_device = None if device == "cpu" else _peak_on(device)
    return Memory(kib["VmRSS"] * 1024, kib["RssFile"] * 1024, kib["VmHWM"] * 1024, on_device)


def _family(process: str) -> Iterator[str]:
    """It, its children, and theirs."""
    yield process
    with suppress(FileNotFoundError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children", encoding="ascii") as table:
                for child in table.read().split():
                    yield from _family(child)


def _peak_on(device: str) -> int:
    import torch

    return int(torch.get_device_module(torch.device(device)).max_memory_allocated())


def _work(loaded: AnyLoadedArm[Any, object], place: Place, connection: Connection) -> None:
    do = loaded.warm_up
    while (job := connection.recv()) is not None:
        drop_from_page_cache([*weight_files(place.model), *loaded.files()])
        answer = do(job)
        connection.send(Measured(answer, read_memory(place.device)))
        do = loaded.answer
