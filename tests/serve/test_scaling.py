"""`autoscaling` of config.yaml: load starts a second replica, and both serve."""

from __future__ import annotations

import threading
import time

import pytest

from deployments.client import PgmoeClient
from pgmoe.errors import EngineOverloaded
from pgmoe.request import SamplingParams
from tests.serve.running_server import Server, eventually

pytestmark = pytest.mark.timeout(180)
WAIT_S = 90.0


def test_a_second_replica_starts_under_load_and_serves(server: Server, client: PgmoeClient) -> None:
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                for _ in client.stream("x", params=SamplingParams(max_tokens=200, ignore_eos=True)):
                    if done.is_set():
                        break
            except EngineOverloaded:
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
