"""The committed scrape config and dashboard with a real Prometheus and the real server under some traffic."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import yaml

from tests.monitoring.dashboard_file import MONITORING, Drawn, drawn, fill, variables
from tests.monitoring.prometheus_server import Prometheus, run_prometheus
from tests.support.checkpoints import save_tiny_chat
from tests.support.ports import free_port
from tests.support.serve_run import serve_run

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(900)]

MODEL = "tiny-chat"
WINDOW = "15s"
TRAFFIC_S = 60.0
SETTLE_S = 25.0  # Ray's processes hand their numbers to the node's agent every ten seconds
Samples = list[tuple[dict[str, str], float]]
each_query = pytest.mark.parametrize("query", drawn(), ids=str)


@dataclass(frozen=True)
class Scene:
    """What is running, and what its clients were told."""

    prometheus: Prometheus
    completion_tokens: int
    drawn: frozenset[Drawn]
    """Queries that yielded a number while there was traffic."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with TemporaryDirectory(prefix="pgmoe-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = save_tiny_chat(folder / MODEL)
        with (
            serve_run(application(model), folder) as url,
            run_prometheus(scraping(url, folder), folder) as prometheus,
        ):
            yield traffic(url, prometheus)


def application(model: Path) -> dict[str, Any]:
    """The repository's config.yaml for another model, half of whose experts fit."""
    config: dict[str, Any] = yaml.safe_load((MONITORING.parent / "config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    config["grpc_options"]["port"] = free_port()
    args = config["applications"][0]["args"]
    args["engine"] |= {"model": str(model), "device": "cpu", "device_memory": "50%", "num_threads": 1}
    args["autoscaling"] = {"min_replicas": 1, "max_replicas": 1}
    args["drain_s"] = 1
    return config


def scraping(url: str, ray_folder: Path) -> dict[str, Any]:
    """The committed scrape config for this server, at a pace for a short test."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    pgmoe, ray = config["scrape_configs"]
    pgmoe["static_configs"][0]["targets"] = [url.removeprefix("http://")]
    ray["scrape_interval"] = "5s"  # also the limit for an answer, and the agent's may take more than a second
    (nodes,) = ray["file_sd_configs"][0]["files"]
    ray["file_sd_configs"][0]["files"] = [nodes.replace("/tmp/ray/", f"{ray_folder}/ray/")]
    return config


def traffic(url: str, prometheus: Prometheus) -> Scene:
    """Ask two things at a time until every query has yielded a number, `TRAFFIC_S` at most."""
    pending, tokens, give_up = set(drawn()), 0, time.monotonic() + TRAFFIC_S
    with ThreadPoolExecutor(2) as clients:
        while pending and time.monotonic() < give_up:
            tokens += sum(clients.map(lambda text: complete(url, text), ("The first", "and the second.")))
            pending = {query for query in pending if not numbers(prometheus, query)}
            time.sleep(0.5)
    return Scene(prometheus, tokens, frozenset(drawn()) - pending)


def complete(url: str, prompt: str) -> int:
    """One completion; the tokens it has, as the API says."""
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 12}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60.0)
    assert answer.is_success, answer.text
    return int(answer.json()["usage"]["completion_tokens"])


def numbers(prometheus: Prometheus, query: Drawn) -> list[float]:
    return [value for _, value in prometheus.query(query.expr(WINDOW)) if math.isfinite(value)]


def settled(scene: Scene, expr: str, expected: Samples) -> Samples:
    """The answer once it is `expected`, or what it still is after `SETTLE_S`."""
    give_up = time.monotonic() + SETTLE_S
    while (answer := scene.prometheus.query(expr)) != expected and time.monotonic() < give_up:
        time.sleep(0.5)
    return answer


@each_query
def test_a_panel_draws_a_number_for_a_server_with_traffic(scene: Scene, query: Drawn) -> None:
    assert query in scene.drawn, scene.prometheus.query(query.expr(WINDOW))


def test_the_tokens_counted_are_those_the_clients_got(scene: Scene) -> None:
    told = [({"model_name": MODEL}, float(scene.completion_tokens))]
    assert settled(scene, "sum by (model_name) (pgmoe_generation_tokens_total)", told) == told


def test_the_variables_offer_the_model_and_its_replica(scene: Scene) -> None:
    offered = {}
    for label in ("model_name", "replica"):
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", fill(variables()[label], WINDOW))
        assert asked
        offered[label] = scene.prometheus.label_values(asked[2], asked[1])
    assert offered["model_name"] == [MODEL]
    assert len(offered["replica"]) == 1


def test_both_jobs_of_the_scrape_config_bring_their_series(scene: Scene) -> None:
    one: Samples = [({}, 1.0)]
    assert settled(scene, 'sum(up{job="pgmoe"})', one) == one
    replicas = 'sum(ray_serve_deployment_replica_healthy{job="ray", deployment="EngineServer"})'
    assert settled(scene, replicas, one) == one
