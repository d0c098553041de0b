"""The committed dashboard against the metric table: nothing forgotten, nothing that does not exist."""

from __future__ import annotations

import re

import promql_parser
import pytest

from monitoring import dashboard
from pgmoe.metrics.names import COMMON_LABELS, METRICS, Metric
from tests.monitoring.dashboard_file import DASHBOARD, Drawn, drawn, fill, variables

SERIES = {
    metric.name + suffix: metric
    for metric in METRICS
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
UNITS = {
    "_seconds_bucket": "s",
    "_bytes_total": "Bps",
    "_stall_seconds_total": "percentunit",
    "_busy_seconds_total": "percentunit",
}

each_query = pytest.mark.parametrize("query", drawn(), ids=str)


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    """Every selection of series in an expression; ValueError where it is no PromQL."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def labels_grouped_by(expr: str) -> set[str]:
    return {label.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(",")}


def labels_of(metric: Metric) -> set[str]:
    return {*COMMON_LABELS, *metric.labels, *(("le",) if metric.kind == "histogram" else ())}


def test_the_committed_dashboard_is_what_the_panels_generate() -> None:
    assert DASHBOARD.read_text() == dashboard.to_json(), "run `python -m monitoring.dashboard`"


def test_every_metric_of_the_table_is_drawn_and_no_other() -> None:
    names = {selector.name for query in drawn() for selector in selectors(query.expr())}
    assert {SERIES[name].name for name in names if name} == {metric.name for metric in METRICS}


@each_query
def test_a_query_follows_the_choice_of_model_and_replica(query: Drawn) -> None:
    for selector in selectors(query.expr()):
        assert {matcher.name for matcher in selector.matchers.matchers} == set(COMMON_LABELS)
    assert set(re.findall(r'(\w+)=~"\$\1"', query.template)) == set(COMMON_LABELS)


@each_query
def test_a_query_groups_by_labels_its_metrics_have_and_names_its_lines_by_them(query: Drawn) -> None:
    groups = labels_grouped_by(query.template)
    for selector in selectors(query.expr()):
        assert groups <= labels_of(SERIES[selector.name or ""])
    assert set(re.findall(r"{{(\w+)}}", query.legend)) == groups - {"le"}


@each_query
def test_the_axis_has_the_unit_of_the_metric(query: Drawn) -> None:
    for selector in selectors(query.expr()):
        for suffix, unit in UNITS.items():
            if (selector.name or "").endswith(suffix):
                assert query.unit == ("percentunit" if " / " in query.template else unit)


@each_query
def test_counters_are_drawn_as_rates_and_gauges_as_they_are(query: Drawn) -> None:
    for selector in selectors(query.expr()):
        is_rate = f"rate({selector}[" in promql_parser.parse(query.expr()).prettify().replace(" ", "")
        assert is_rate == (SERIES[selector.name or ""].kind != "gauge")


def test_the_variables_offer_the_labels_that_all_series_carry() -> None:
    queries = {name: fill(query, "1m") for name, query in variables().items() if name != "datasource"}
    assert set(queries) == set(COMMON_LABELS)
    for label, query in queries.items():
        series, offered = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert offered == label
        assert all(selector.name in SERIES for selector in selectors(series))
