from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgmoe.metrics import names
from pgmoe.metrics.prometheus import BY_LABELS, NUMBERS, OBSERVATIONS, StatsCollector
from pgmoe.metrics.stats import EngineStats

LABELS = {"model_name": "m", "replica": "r0"}
Value = Callable[..., float | None]


@pytest.fixture
def stats() -> EngineStats:
    return EngineStats()


@pytest.fixture
def registry(stats: EngineStats) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(StatsCollector(stats, model_name="m", replica="r0"))
    return registry


@pytest.fixture
def value(registry: CollectorRegistry) -> Value:
    return lambda name, **labels: registry.get_sample_value(f"pgmoe_{name}", LABELS | labels)


def test_every_metric_of_the_table_is_read_from_one_place() -> None:
    readers: list[dict[names.Metric, Any]] = [NUMBERS, BY_LABELS, OBSERVATIONS]
    assert sorted(m.name for reader in readers for m in reader) == sorted(m.name for m in names.METRICS)
    assert all(metric.kind == "histogram" for metric in OBSERVATIONS)
    assert all(metric.labels for metric in BY_LABELS)


def test_numbers_are_those_of_the_moment_of_the_scrape(stats: EngineStats, value: Value) -> None:
    assert value("generation_tokens_total") == 0
    stats.generation_tokens = 5
    stats.num_running = 2
    assert value("generation_tokens_total") == 5
    assert value("num_requests_running") == 2


def test_counts_by_layer_link_and_reason_carry_their_label(stats: EngineStats, value: Value) -> None:
    stats.experts.misses[3] += 4
    stats.experts.links["disk_to_device"].num_bytes["demand"] += 8192
    stats.experts.layer_stall_s[3] += 0.25
    stats.experts.policy = "lru"
    stats.experts.evictions[2] += 7
    stats.finished["cancelled"] += 1
    assert value("expert_cache_misses_total", layer="3") == 4
    assert value("expert_transfer_bytes_total", link="disk_to_device", reason="demand") == 8192
    assert value("expert_stall_seconds_total", layer="3") == 0.25
    assert value("expert_cache_evictions_total", layer="2", policy="lru") == 7
    assert value("request_success_total", finished_reason="cancelled") == 1


def test_links_and_prefetches_are_on_the_page(stats: EngineStats, value: Value) -> None:
    link, experts = stats.experts.links["disk_to_host"], stats.experts
    assert value("link_bandwidth_bytes_per_second", link="disk_to_host") is None  # it was not measured
    link.bandwidth, link.busy_s = 2e9, 1.5
    link.num_bytes.update(demand=100, prefetch=50)
    link.transfer_s.extend([0.0002, 0.3])
    stats.experts.links["host_to_device"].transfer_s.append(0.001)
    assert value("link_bandwidth_bytes_per_second", link="disk_to_host") == 2e9
    assert value("link_busy_seconds_total", link="disk_to_host") == 1.5
    assert value("expert_transfer_bytes_total", link="disk_to_host", reason="prefetch") == 50
    assert value("expert_transfer_seconds_bucket", link="disk_to_host", le="0.00025") == 1
    assert value("expert_transfer_seconds_count", link="disk_to_host") == 2
    assert value("expert_transfer_seconds_sum", link="host_to_device") == 0.001
    experts.prefetch_bytes.update(useful=7, late=5, wasted=3)
    for outcome, num_bytes in experts.prefetch_bytes.items():
        assert value("prefetch_bytes_total", outcome=outcome) == num_bytes
    assert (value("prefetch_on"), value("prefetch_switches_total")) == (0, 0)
    experts.prefetch_on, experts.prefetch_switches = True, 2
    assert (value("prefetch_on"), value("prefetch_switches_total")) == (1, 2)


def test_observations_stay_counted_after_their_queue_is_emptied(stats: EngineStats, value: Value) -> None:
    bucket = "time_to_first_token_seconds_bucket"
    stats.time_to_first_token_s.extend([0.004, 0.005, 0.02, 1000.0])
    assert value(bucket, le="0.005") == 2  # a value on a bound belongs below it
    assert value(bucket, le="0.025") == 3
    assert not stats.time_to_first_token_s
    stats.time_to_first_token_s.append(0.001)
    assert value(bucket, le="0.005") == 3
    assert value(bucket, le="300.0") == 4
    assert value(bucket, le="+Inf") == value("time_to_first_token_seconds_count") == 5
    assert value("time_to_first_token_seconds_sum") == pytest.approx(1000.03)


def test_the_page_has_each_metric_under_its_name_with_help(registry: CollectorRegistry) -> None:
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    for metric in names.METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
