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
from tests.monitoring.prometheus_server import Prometheus, free_port, run_prometheus
from tests.monitoring.serve_run import serve_run
from tests.support.checkpoints import save_tiny_chat

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(180)]

MODEL = "tiny-chat"
WINDOW = "15s"
TRAFFIC_S = 60.0
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
    """The committed scrape config for this server, every second."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    pgmoe, ray = config["scrape_configs"]
    pgmoe["static_configs"][0]["targets"] = [url.removeprefix("http://")]
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


@each_query
def test_a_panel_draws_a_number_for_a_server_with_traffic(scene: Scene, query: Drawn) -> None:
    assert query in scene.drawn, scene.prometheus.query(query.expr(WINDOW))


def test_the_tokens_counted_are_those_the_clients_got(scene: Scene) -> None:
    give_up = time.monotonic() + 10
    counted: list[tuple[dict[str, str], float]] = []
    while time.monotonic() < give_up and [value for _, value in counted] != [scene.completion_tokens]:
        counted = scene.prometheus.query("sum by (model_name) (pgmoe_generation_tokens_total)")
        time.sleep(0.5)
    assert counted == [({"model_name": MODEL}, scene.completion_tokens)]


def test_the_variables_offer_the_model_and_its_replica(scene: Scene) -> None:
    offered = {}
    for label in ("model_name", "replica"):
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", fill(variables()[label], WINDOW))
        assert asked
        offered[label] = scene.prometheus.label_values(asked[2], asked[1])
    assert offered["model_name"] == [MODEL]
    assert len(offered["replica"]) == 1


def test_every_target_of_the_scrape_config_answers(scene: Scene) -> None:
    up = {labels["job"]: value for labels, value in scene.prometheus.query("up")}
    assert up == {"pgmoe": 1, "ray": 1}
    assert scene.prometheus.query('count(ray_serve_deployment_replica_healthy{deployment="EngineServer"})')
