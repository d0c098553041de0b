"""Engine replicas come with load, and come back when they die."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from deployments.client import PgmoeClient
from pgmoe.errors import EngineClosed, PgmoeError
from pgmoe.request import SamplingParams
from tests.serve.running_server import CONTEXT, ENDLESS, MODEL, PATIENCE_S, Server, eventually

WAIT_S = 300.0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each replica takes a core")
def test_a_second_replica_starts_under_load_and_serves(server: Server, client: PgmoeClient) -> None:
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                for _ in client.stream("x", params=SamplingParams(max_tokens=200, ignore_eos=True)):
                    if done.is_set():
                        break
            except PgmoeError:  # it is full, or too busy to answer
                time.sleep(0.1)

    def replicas_that_generated() -> int:
        tokens = [s for s in server.samples() if s.name == "pgmoe_generation_tokens_total"]
        return len({sample.labels["replica"] for sample in tokens if sample.value > 0})

    callers = [threading.Thread(target=load) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        assert eventually(lambda: replicas_that_generated() == 2, WAIT_S)
    finally:
        done.set()
        for caller in callers:
            caller.join()
    assert eventually(lambda: server.running() == 0)


def engine_processes(folder: Path) -> list[int]:
    """The engine replicas of the server whose Ray session lies in `folder`; of no other on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # gone, or not ours
        if b":EngineServer" in title and f"RAY_TMPDIR={folder}".encode() in environment.split(b"\0"):
            found.append(int(process.name))
    return found


def serves(client: PgmoeClient) -> bool:
    """Whether a request is answered. One that goes to a second dead replica, which nobody met yet, is not."""
    try:
        return client.generate("x", params=SamplingParams(max_tokens=1)).finished
    except EngineClosed:
        return False


def test_streams_of_a_killed_replica_end_with_an_error_and_a_new_one_serves(
    server: Server, client: PgmoeClient, folder: Path
) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": CONTEXT - 16, "stream": True, **ENDLESS}
    grpc_stream = client.stream("x", params=SamplingParams(ignore_eos=True))
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S) as answer:
        lines = answer.iter_lines()
        next(lines)
        next(grpc_stream)
        killed = engine_processes(folder)
        for process in killed:
            os.kill(process, signal.SIGKILL)
        *_, error, done = [line for line in lines if line]
    assert killed
    assert '"unavailable"' in error
    assert done == "data: [DONE]"
    with pytest.raises(EngineClosed, match="went away"):
        list(grpc_stream)
    assert eventually(lambda: httpx.get(f"{server.url}/health", timeout=PATIENCE_S).is_success, WAIT_S)
    assert eventually(lambda: serves(client))
    assert not set(engine_processes(folder)) & set(killed)
