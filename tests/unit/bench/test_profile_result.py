from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgmoe.bench.compare import Series
from pgmoe.bench.job import Answer, Measured, Profile, Traffic
from pgmoe.bench.profile_report import render_profile
from pgmoe.bench.profile_result import ProfiledSeries, ProfileResult
from pgmoe.bench.result_file import draw_result, load_result, render_result
from pgmoe.bench.token_parts import PARTS
from tests.unit.bench.results import MACHINE, MEMORY


def _measured(factor: float, plain_s: float) -> Measured:
    """Four tokens after the first, in whose parts there are 40, 80, 120, ... ms times a factor."""
    profile = Profile(
        parts_s={part: 0.04 * number * factor for number, part in enumerate(PARTS, start=1)},
        compute_cpu_s=0.4 * factor,
        reader_cpu_s=0.02 * factor,
        link_busy_s=0.1 * factor,
        timers_s=0.004 * factor,
        plain_decode_s=plain_s,
    )
    traffic = Traffic(hits=3, misses=1, num_bytes=80_000_000, stall_s=0.1)
    return Measured(Answer((1, 2, 3, 4, 5), 0.5, 1.12 * factor, traffic, profile), MEMORY)


def made_up_profile() -> ProfileResult:
    """Two arms; in the second round the tokens take twice as long and the disk is half as fast."""
    series = Series("25%, on_demand", (), (_measured(1, 1.0), _measured(2, 2.24)))
    resident = replace(series, name="100%")
    return ProfileResult(
        name="profile-made-up",
        date="2026-01-02T03:04:05+00:00",
        commit="abc1234",
        machine=MACHINE,
        conditions={"workload": "five tokens"},
        disk_bytes_per_s=(2e9, 1e9),
        profiled=(
            ProfiledSeries(100.0, 64, 0.0, resident),
            ProfiledSeries(25.0, 16, 1e7, series),
        ),
    )


def test_numbers_are_per_token_after_the_first() -> None:
    arm = made_up_profile().profiled[1]
    assert arm.token_ms.text(0) == "420 (280-560)"
    assert [round(spread.low) for spread in arm.parts_ms.values()] == [10, 20, 30, 40, 50, 60, 70]
    assert arm.compute_cpu_ms.text(0) == "150 (100-200)"
    assert arm.read_bytes.text(0) == "20000000"


def test_the_middle_rounds_parts_add_up_to_its_token() -> None:
    arm = made_up_profile().profiled[1]
    rounds = (_measured(3, 1.0), *arm.series.rounds)
    middle = replace(arm, series=replace(arm.series, rounds=rounds)).middle_ms
    assert [round(ms) for ms in middle.values()] == [20, 40, 60, 80, 100, 120, 140]
    assert [round(ms) for ms in arm.middle_ms.values()] == [10, 20, 30, 40, 50, 60, 70]


def test_bytes_and_timers_are_compared_within_a_round() -> None:
    result = made_up_profile()
    arm = result.profiled[1]
    assert arm.link_least_ms(result.disk_bytes_per_s).text(0) == "15 (10-20)"
    assert arm.belady_least_ms(result.disk_bytes_per_s).text(1) == "7.5 (5.0-10.0)"
    assert arm.timers_cost.text(2) == "0.06 (0.00-0.12)"


def test_a_report_has_a_row_for_each_part_and_a_column_for_each_arm() -> None:
    report = render_profile(made_up_profile())
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in report.splitlines() if "|" in line]
    assert rows[0] == ["ms per token", "100%", "25%, on_demand"]
    assert [row[0] for row in rows[2:9]] == list(PARTS)
    by_name = {row[0]: row[2] for row in rows}
    assert by_name["**together**"] == "420.00 (280.00-560.00)"
    assert by_name["waiting for experts"] == "45.00 (30.00-60.00)"
    assert by_name["link busy, ms"] == "37.50 (25.00-50.00)"
    assert by_name["read, MB"] == "20.0"
    assert by_name["hit rate, %"] == "75.0"
    assert by_name["slower with the timers than without, %"] == "6.0 (0.0-12.0)"
    assert render_result(made_up_profile()) == report


def test_a_saved_profile_comes_back_whole(tmp_path: Path) -> None:
    assert load_result(made_up_profile().save(tmp_path)) == made_up_profile()


def test_a_profile_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_result(made_up_profile(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
