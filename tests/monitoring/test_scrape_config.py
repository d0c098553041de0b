"""The files that a user mounts: Prometheus' scrape configuration and Grafana's provisioning."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from pgmoe.metrics.names import METRICS
from tests.monitoring.dashboard_file import MONITORING

CONFIG = MONITORING / "prometheus.yml"


def read(path: str) -> Any:
    return yaml.safe_load((MONITORING / path).read_text())


def kept(job: dict[str, Any], series: str) -> bool:
    """Whether a job's relabelling keeps a series of that name (Prometheus matches whole names)."""
    rules = job["metric_relabel_configs"]
    assert all(rule["action"] == "keep" and rule["source_labels"] == ["__name__"] for rule in rules)
    return all(re.fullmatch(rule["regex"], series) for rule in rules)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_scraped_by_one_job_with_one_target_so_that_nothing_counts_twice(metric: Any) -> None:
    suffix = "_bucket" if metric.kind == "histogram" else ""
    (job,) = [job for job in read("prometheus.yml")["scrape_configs"] if kept(job, metric.name + suffix)]
    assert sum(len(targets["targets"]) for targets in job["static_configs"]) == 1


def test_grafana_is_told_the_interval_of_the_scrapes() -> None:
    (source,) = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["jsonData"]["timeInterval"] == read("prometheus.yml")["global"]["scrape_interval"]


@pytest.mark.prometheus
def test_promtool_accepts_the_scrape_config() -> None:
    command = ["promtool", "check", "config", str(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
