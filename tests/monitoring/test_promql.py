"""What the expressions of `monitoring.promql` compute, by Prometheus' own unit tests for rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.promql import now, per_second, quantile, share
from pgmoe.metrics import names
from pgmoe.metrics.names import Metric
from tests.monitoring.dashboard_file import fill

pytestmark = pytest.mark.prometheus


def series(
    metric: Metric, values: str, replica: str = "a", suffix: str = "", **labels: str
) -> dict[str, str]:
    pairs = {"model_name": "m", "replica": replica} | labels
    written = ",".join(f'{label}="{value}"' for label, value in pairs.items())
    return {"series": f"{metric.name}{suffix}{{{written}}}", "values": values}


def check(folder: Path, expr: str, given: list[dict[str, str]], expected: dict[str, float]) -> None:
    """Evaluate `expr` ten minutes into `given`, a sample each minute."""
    samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
    test = {"expr": fill(expr, "5m"), "eval_time": "10m", "exp_samples": samples}
    file = folder / "test.yml"
    file.write_text(
        yaml.safe_dump({"tests": [{"interval": "1m", "input_series": given, "promql_expr_test": [test]}]})
    )
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gauge_is_summed_over_the_replicas(tmp_path: Path) -> None:
    given = [series(names.REQUESTS_RUNNING, "3x10"), series(names.REQUESTS_RUNNING, "4x10", replica="b")]
    check(tmp_path, now(names.REQUESTS_RUNNING), given, {'{model_name="m"}': 7})


def test_a_counter_is_shown_as_growth_per_second_and_survives_a_restart(tmp_path: Path) -> None:
    given = [
        series(names.PROMPT_TOKENS, "0+600x7 600+600x5"),
        series(names.PROMPT_TOKENS, "0+60x10", replica="b"),
    ]
    check(tmp_path, per_second(names.PROMPT_TOKENS), given, {'{model_name="m"}': (600 + 60) / 60})


def test_the_hit_rate_counts_all_replicas_of_a_layer(tmp_path: Path) -> None:
    given = [
        series(names.EXPERT_HITS, "0+30x10", layer="1"),
        series(names.EXPERT_HITS, "0+60x10", layer="1", replica="b"),
        series(names.EXPERT_MISSES, "0+30x10", layer="1"),
        series(names.EXPERT_MISSES, "0+7x10", layer="2"),
    ]
    by_layer = {'{model_name="m", layer="1"}': 0.75, '{model_name="m", layer="2"}': 0}
    check(tmp_path, share(names.EXPERT_HITS, names.EXPERT_MISSES, "layer"), given, by_layer)


def test_the_hit_rate_is_one_where_nothing_ever_missed(tmp_path: Path) -> None:
    given = [series(names.EXPERT_HITS, "0+30x10", layer="1")]
    check(tmp_path, share(names.EXPERT_HITS, names.EXPERT_MISSES), given, {'{model_name="m"}': 1})


def test_a_quantile_is_taken_over_the_requests_of_all_replicas(tmp_path: Path) -> None:
    given = [
        series(names.E2E_LATENCY, "0+10x10", suffix="_bucket", le="1.0"),
        series(names.E2E_LATENCY, "0+10x10", suffix="_bucket", le="2.5"),
        series(names.E2E_LATENCY, "0+10x10", suffix="_bucket", le="+Inf"),
        series(names.E2E_LATENCY, "0+0x10", suffix="_bucket", replica="b", le="1.0"),
        series(names.E2E_LATENCY, "0+30x10", suffix="_bucket", replica="b", le="2.5"),
        series(names.E2E_LATENCY, "0+30x10", suffix="_bucket", replica="b", le="+Inf"),
    ]
    halfway = 1 + 1.5 * (20 - 10) / 30  # the 20th of 40, evenly spread within its bucket
    check(tmp_path, quantile(0.5, names.E2E_LATENCY), given, {'{model_name="m"}': halfway})
