from __future__ import annotations

import json
from pathlib import Path

from pgmoe.bench.policies import compare_policies, halves, render
from pgmoe.experts.policies import POLICIES
from tests.unit.simulation.conftest import random_trace


def test_halves_share_no_sequence_and_lose_no_step() -> None:
    trace = random_trace(0, num_steps=20)
    one, other = halves(trace)
    assert {step.sequence for step in one.steps} == {"s0"}
    assert {step.sequence for step in other.steps} == {"s1"}
    assert len(one.steps) + len(other.steps) == 20


def test_all_policies_and_budgets_are_in_the_result_file(tmp_path: Path) -> None:
    random_trace(0, num_steps=40).save(tmp_path / "some.parquet")
    result = compare_policies([tmp_path / "some.parquet"])
    path = result.save(tmp_path / "results")
    assert path.name == f"policies-{result.date[:10]}-{result.commit.rstrip('+')}.json"
    (row,) = json.loads(path.read_bytes())["rows"]
    assert row["trace"] == "some"
    outcomes = {(o["policy"], o["pools"], o["num_slots"]) for o in row["reported"]["outcomes"]}
    names = ["belady", *POLICIES]
    assert outcomes == {
        # 10 % of 24 experts are no slot for each of three layers.
        *((name, "global", slots) for name in names for slots in (2, 6, 12, 18)),
        *((name, "per-layer", slots) for name in names for slots in (6, 12, 18)),
    }


def test_the_table_shows_the_reported_half(tmp_path: Path) -> None:
    random_trace(0, num_steps=40).save(tmp_path / "some.parquet")
    result = compare_policies([tmp_path / "some.parquet"])
    lines = render(result).splitlines()
    lru = [o for o in result.rows[0].reported.outcomes if (o.policy, o.pools) == ("lru", "per-layer")]
    shown = " | ".join(f"{o.over_belady:.2f}" for o in lru)
    assert f"| lru, a pool per layer |  | {shown} |" in lines
    assert "| misses / Belady's | 8% | 25% | 50% | 75% |" in lines
    assert "| belady | 1.00 | 1.00 | 1.00 | 1.00 |" in lines
