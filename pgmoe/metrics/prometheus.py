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
    names.PROMPT_TOKENS: lambda stats: stats.prompt_tokens,
    names.GENERATION_TOKENS: lambda stats: stats.generation_tokens,
    names.EXPERT_RESIDENT: lambda stats: stats.experts.resident,
    names.EXPERT_SLOTS: lambda stats: stats.experts.slots,
    names.STALL_TIME: lambda stats: stats.experts.stall_s,
}
BY_LABEL: dict[names.Metric, Callable[[EngineStats], Mapping[int, int] | Mapping[str, int]]] = {
    names.REQUESTS_FINISHED: lambda stats: stats.finished,
    names.EXPERT_HITS: lambda stats: stats.experts.hits,
    names.EXPERT_MISSES: lambda stats: stats.experts.misses,
    names.EXPERT_EVICTIONS: lambda stats: stats.experts.evictions,
    names.TRANSFER_BYTES: lambda stats: stats.experts.transfer_bytes,
}
OBSERVATIONS: dict[names.Metric, Callable[[EngineStats], deque[float]]] = {
    names.TIME_TO_FIRST_TOKEN: lambda stats: stats.time_to_first_token_s,
    names.INTER_TOKEN_LATENCY: lambda stats: stats.inter_token_s,
    names.QUEUE_TIME: lambda stats: stats.queue_s,
    names.E2E_LATENCY: lambda stats: stats.e2e_s,
    names.TRANSFER_TIME: lambda stats: stats.experts.transfer_s,
}


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
        self._histograms = {metric: _Histogram(metric.buckets) for metric in OBSERVATIONS}

    def drain(self) -> None:
        """Take over what the engine observed; its queues are bounded, so do it now and then."""
        for metric, histogram in self._histograms.items():
            histogram.take(OBSERVATIONS[metric](self._stats))

    def collect(self) -> Iterator[Metric]:
        """Every row of the table with its values as of now. One thread at a time."""
        self.drain()
        return map(self._family, names.METRICS)

    def _family(self, metric: names.Metric) -> Metric:
        labels = [*names.COMMON_LABELS, *metric.labels]
        if metric.kind == "histogram":
            family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
            histogram = self._histograms[metric]
            family.add_metric(self._common, histogram.cumulative(), histogram.sum)
            return family
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        numbers = kind(metric.name, metric.help, labels=labels)
        if metric in NUMBERS:
            numbers.add_metric(self._common, NUMBERS[metric](self._stats))
        else:
            by_label = dict(BY_LABEL[metric](self._stats))  # one step: the engine's thread may add keys
            for label, value in sorted(by_label.items()):
                numbers.add_metric([*self._common, str(label)], value)
        return numbers
