"""`/metrics` of the running server against what the callers were told."""

from __future__ import annotations

from collections import Counter

import httpx
from openai import OpenAI
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pgmoe.metrics.names import COMMON_LABELS, METRICS
from tests.serve.running_server import MODEL, PATIENCE_S, Server, eventually

SUFFIX = {"counter": "", "gauge": "", "histogram": "_count"}


def totals(samples: list[Sample]) -> Counter[str]:
    """Every sample's value, summed over its labels."""
    sums: Counter[str] = Counter()
    for sample in samples:
        sums[sample.name] += sample.value  # type: ignore[assignment]
    return sums


def test_what_is_counted_is_what_the_callers_were_told(server: Server, openai: OpenAI) -> None:
    assert eventually(lambda: server.running() == 0)
    before = totals(server.samples())
    usages = [
        openai.completions.create(model=MODEL, prompt=prompt, max_tokens=12).usage
        for prompt in ("To bake bread", "A lighthouse keeper counts")
    ]
    told = [usage for usage in usages if usage is not None]
    experts: list[dict[str, float]] = [usage.model_extra["experts"] for usage in told]  # type: ignore[index]
    assert eventually(lambda: server.running() == 0)
    counted = totals(server.samples())
    counted.subtract(before)
    generated = sum(usage.completion_tokens for usage in told)
    assert len(told) == 2
    assert counted["pgmoe_generation_tokens_total"] == generated
    assert counted["pgmoe_prompt_tokens_total"] == sum(usage.prompt_tokens for usage in told)
    assert counted["pgmoe_request_success_total"] == 2
    assert counted["pgmoe_expert_cache_hits_total"] == sum(e["hits"] for e in experts)
    assert counted["pgmoe_expert_cache_misses_total"] == sum(e["misses"] for e in experts)
    # A guess that was still under way when an answer was complete is counted, but was told to nobody.
    assert counted["pgmoe_expert_transfer_bytes_total"] >= sum(e["bytes"] for e in experts) > 0
    assert counted["pgmoe_expert_transfer_seconds_count"] >= sum(e["misses"] for e in experts) > 0
    for latency in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert counted[f"pgmoe_{latency}_seconds_count"] == 2, latency
    assert counted["pgmoe_inter_token_latency_seconds_count"] == generated - 2


def test_every_metric_of_the_table_is_there_for_each_replica(server: Server, openai: OpenAI) -> None:
    openai.completions.create(model=MODEL, prompt="Bread", max_tokens=12)
    samples = server.samples()
    replicas = {sample.labels["replica"] for sample in samples}
    for metric in METRICS:
        name = metric.name + SUFFIX[metric.kind]
        found = [sample for sample in samples if sample.name == name]
        assert found, name
        for sample in found:
            assert set(sample.labels) == {*COMMON_LABELS, *metric.labels}, name
            assert sample.labels["model_name"] == MODEL
            assert sample.labels["replica"]
        if not metric.labels:  # a value of the others appears with its first event
            assert {sample.labels["replica"] for sample in found} == replicas, name


def test_slots_hold_experts_of_half_the_model(server: Server, openai: OpenAI) -> None:
    openai.completions.create(model=MODEL, prompt="Bread", max_tokens=12)
    samples = server.samples()
    now = totals(samples)
    replicas = {sample.labels["replica"] for sample in samples}
    assert now["pgmoe_expert_cache_slots"] == 12 * len(replicas)
    assert 0 < now["pgmoe_expert_cache_resident"] <= now["pgmoe_expert_cache_slots"]


def test_a_scraper_that_speaks_openmetrics_gets_openmetrics(server: Server) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    answer = httpx.get(f"{server.url}/metrics", headers={"Accept": accept}, timeout=PATIENCE_S)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert families == {metric.name.removesuffix("_total") for metric in METRICS}
