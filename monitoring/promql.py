"""PromQL over the metric table: each function takes a `Metric`, never a name, and knows which kind it fits.

Every expression keeps to the series that the dashboard's variables select and is summed over replicas, one
line per model.
"""

from __future__ import annotations

from pgmoe.metrics.names import Metric

SELECTED = 'model_name=~"$model_name", replica=~"$replica"'
WINDOW = "$__rate_interval"  # Grafana's: at least four scrapes, so that rate() always has two samples


def now(gauge: Metric, *by: str) -> str:
    """A gauge's value, summed over replicas unless `by` names that label."""
    assert gauge.kind == "gauge", gauge.name
    return f"sum by ({_labels(by)}) ({gauge.name}{{{SELECTED}}})"


def per_second(counter: Metric, *by: str) -> str:
    """A counter's growth per second, summed over all labels but the model and those of `by`."""
    assert counter.kind == "counter", counter.name
    return f"sum by ({_labels(by)}) (rate({counter.name}{{{SELECTED}}}[{WINDOW}]))"


def quantile(rank: float, histogram: Metric) -> str:
    """The value that a share `rank` of the observations of the window do not exceed."""
    assert histogram.kind == "histogram", histogram.name
    rates = f"sum by ({_labels(('le',))}) (rate({histogram.name}_bucket{{{SELECTED}}}[{WINDOW}]))"
    return f"histogram_quantile({rank}, {rates})"


def share(part: Metric, rest: Metric, *by: str) -> str:
    """part / (part + rest), of two counters' growth; no value while neither grows.

    A counter that never counted may have no series at all (an engine whose experts are all resident has no
    misses): then it stands for 0, where plain arithmetic would give an empty result.
    """
    grown, other = per_second(part, *by), per_second(rest, *by)
    return f"({grown} or 0 * {other}) / ({grown} + {other} or {grown} or {other})"


def utilisation(moved: Metric, capacity: Metric, *by: str) -> str:
    """A counter's growth per second as a share of a gauge that says how fast it could grow."""
    return f"{per_second(moved, *by)} / {now(capacity, *by)}"


def values_of(label: str, metric: Metric, where: str = "") -> str:
    """Grafana's query for a variable: the values that `label` takes in the series of `metric`."""
    return (
        f"label_values({metric.name}{{{where}}}, {label})"
        if where
        else f"label_values({metric.name}, {label})"
    )


def _labels(by: tuple[str, ...]) -> str:
    return ", ".join(("model_name", *by))
