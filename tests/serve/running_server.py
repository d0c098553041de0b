"""What tests ask of the running server beside the calls they test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

MODEL = "tiny-chat"
CONTEXT = 4096
DEFAULTS = {"temperature": 1.5, "top_k": 40}
"""Sampling that the model's makers recommend."""
ENDLESS = {"ignore_eos": True}
"""Sampling parameters that go on to the end of the context: many seconds of work, if nothing stops them."""
PATIENCE_S = 60.0
"""How long a slow machine may take over what is done at once elsewhere."""


@dataclass(frozen=True)
class Server:
    """Where it listens."""

    url: str
    grpc: str

    def samples(self) -> list[Sample]:
        """Everything on `/metrics`."""
        page = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).raise_for_status().text
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]

    def total(self, *names: str) -> float:
        """The sum of these metrics over all replicas and labels, at one moment."""
        return sum(sample.value for sample in self.samples() if sample.name in names)

    def running(self) -> float:
        return self.total("pgmoe_num_requests_running", "pgmoe_num_requests_waiting")

    def tokens(self) -> float:
        return self.total("pgmoe_generation_tokens_total")


def eventually(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Whether it becomes true in time; while the server does not answer, it is not true yet."""
    give_up = time.monotonic() + within_s
    while not (fulfilled := _holds(condition)) and time.monotonic() < give_up:
        time.sleep(0.05)
    return fulfilled


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except httpx.HTTPError:
        return False
