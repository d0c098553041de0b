"""Engine statistics as Prometheus families: the metric table, filled in. The only user of prometheus_client.

::

    registry.register(StatsCollector(engine.stats, model_name="my-moe", replica="0"))
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pgmoe.metrics import names
from pgmoe.metrics.stats import EngineStats

NUMBERS: dict[names.Metric, Callable[[EngineStats], float]] = {
    names.REQUESTS_RUNNING: lambda stats: stats.num_running,
    names.REQUESTS_WAITING: lambda stats: stats.num_waiting,
    names.KV_USED_BLOCKS: lambda stats: stats.kv_used_blocks,
    names.KV_BLOCKS: lambda stats: stats.kv_blocks,
    names.PREEMPTIONS: lambda stats: stats.num_preemptions,
    names.PREFERRED: lambda stats: stats.num_preferred,
    names.PREFIX_QUERIES: lambda stats: stats.prefix_queries,
    names.PREFIX_HITS: lambda stats: stats.prefix_hits,
    names.PROMPT_TOKENS: lambda stats: stats.prompt_tokens,
    names.GENERATION_TOKENS: lambda stats: stats.generation_tokens,
    names.EXPERT_RESIDENT: lambda stats: stats.experts.resident,
    names.EXPERT_SLOTS: lambda stats: stats.experts.slots,
    names.PREFETCH_ON: lambda stats: stats.experts.prefetch_on,
    names.PREFETCH_SWITCHES: lambda stats: stats.experts.prefetch_switches,
}
Labels = tuple[str | int, ...]
BY_LABELS: dict[names.Metric, Callable[[EngineStats], dict[Labels, float]]] = {
    names.REQUESTS_FINISHED: lambda stats: _one(stats.finished),
    names.EXPERT_HITS: lambda stats: _one(stats.experts.hits),
    names.EXPERT_MISSES: lambda stats: _one(stats.experts.misses),
    names.EXPERT_EVICTIONS: lambda stats: {
        (layer, stats.experts.policy): n for layer, n in dict(stats.experts.evictions).items()
    },
    names.STALL_TIME: lambda stats: _one(stats.experts.layer_stall_s),
    names.PREFETCH_BYTES: lambda stats: _one(stats.experts.prefetch_bytes),
    names.TRANSFER_BYTES: lambda stats: {
        (link, reason): n
        for link, counted in dict(stats.experts.links).items()
        for reason, n in dict(counted.num_bytes).items()
    },
    names.LINK_BUSY: lambda stats: {(n,): link.busy_s for n, link in dict(stats.experts.links).items()},
    names.LINK_BANDWIDTH: lambda stats: {
        (n,): link.bandwidth for n, link in dict(stats.experts.links).items() if link.bandwidth
    },
}
"""Copies, made in one step each: the engine's threads may add keys."""
OBSERVATIONS: dict[names.Metric, Callable[[EngineStats], dict[Labels, deque[float]]]] = {
    names.TIME_TO_FIRST_TOKEN: lambda stats: {(): stats.time_to_first_token_s},
    names.INTER_TOKEN_LATENCY: lambda stats: {(): stats.inter_token_s},
    names.QUEUE_TIME: lambda stats: {(): stats.queue_s},
    names.E2E_LATENCY: lambda stats: {(): stats.e2e_s},
    names.TRANSFER_TIME: lambda stats: {
        (n,): link.transfer_s for n, link in dict(stats.experts.links).items()
    },
}


def _one(values: Mapping[int, float] | Mapping[str, float]) -> dict[Labels, float]:
    """Values by one label."""
    return {(label,): value for label, value in dict(values).items()}


class _Histogram:
    """Observations so far, as counts per bucket."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def take(self, values: deque[float]) -> None:
        """Empty `values` into the buckets; a value on a bound belongs below it."""
        while values:
            value = values.popleft()
            self._counts[bisect_left(self._bounds, value)] += 1
            self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), `+Inf` last, as Prometheus wants them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class StatsCollector(Collector):
    """Reads one engine's statistics whenever its registry is scraped. The only reader of their queues."""

    def __init__(self, stats: EngineStats, *, model_name: str, replica: str) -> None:
        self._stats = stats
        self._common = [model_name, replica]  # in the order of names.COMMON_LABELS
        self._histograms: dict[tuple[names.Metric, Labels], _Histogram] = {}

    def drain(self) -> None:
        """Take over what the engine observed; its queues are bounded, so do it now and then."""
        for metric, observed in OBSERVATIONS.items():
            for labels, values in observed(self._stats).items():
                histogram = self._histograms.setdefault((metric, labels), _Histogram(metric.buckets))
                histogram.take(values)

    def collect(self) -> Iterator[Metric]:
        """Every row of the table with its values as of now. One thread at a time."""
        self.drain()
        return map(self._family, names.METRICS)

    def _family(self, metric: names.Metric) -> Metric:
        labels = [*names.COMMON_LABELS, *metric.labels]
        if metric.kind == "histogram":
            family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
            for (of, values), histogram in self._histograms.items():
                if of is metric:
                    family.add_metric(self._all(values), histogram.cumulative(), histogram.sum)
            return family
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        numbers = kind(metric.name, metric.help, labels=labels)
        if metric in NUMBERS:
            numbers.add_metric(self._common, NUMBERS[metric](self._stats))
        else:
            for values, number in sorted(BY_LABELS[metric](self._stats).items()):
                numbers.add_metric(self._all(values), number)
        return numbers

    def _all(self, values: Labels) -> list[str]:
        return [*self._common, *map(str, values)]
