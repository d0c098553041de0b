from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgmoe.bench.compare import Series
from pgmoe.bench.curve_report import render_curve
from pgmoe.bench.curve_result import CurvePoint, CurveResult, layer_waits
from pgmoe.bench.job import Traffic
from pgmoe.bench.result_file import draw_result, draw_stalls, load_result, render_result
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from tests.unit.bench.results import MACHINE, made_up_result, series

TOKENS = (1, 2, 3, 4, 5)


def _series(name: str, *speeds: float) -> Series:
    return series(name, [4 / speed for speed in speeds], TOKENS)


def made_up_curve() -> CurveResult:
    """Two rounds: the disk carries a token's fewest misses 10 times a second in one, 5 times in the other."""
    resident = (_series("pgmoe", 20.0, 40.0), _series("llama.cpp", 40.0, 40.0))
    return CurveResult(
        name="curve-made-up",
        date="2026-01-02T03:04:05+00:00",
        commit="abc1234",
        machine=MACHINE,
        conditions={"workload": "five tokens"},
        engines={"pgmoe, on_demand": "pgmoe", "llama.cpp": "llama.cpp", "accelerate": "pgmoe"},
        points=(
            CurvePoint(
                share=100.0,
                num_slots=64,
                limit_bytes=4 * 10**9,
                series=(
                    _series("pgmoe, on_demand", 20.0, 40.0),
                    resident[1],
                    _series("accelerate", 2.0, 2.0),
                ),
                references=resident,
                bandwidth=(1e9, 5e8),
                belady_bytes=0.0,
            ),
            CurvePoint(
                share=50.0,
                num_slots=32,
                limit_bytes=2 * 10**9,
                series=(
                    _series("pgmoe, on_demand", 9.0, 5.0),
                    _series("llama.cpp", 1.0, 0.5),
                    _series("accelerate", 0.5, 2.0),
                ),
                references=resident,
                bandwidth=(1e9, 5e8),
                belady_bytes=1e8,
            ),
        ),
    )


def test_a_fraction_is_of_the_same_round() -> None:
    curve = made_up_curve()
    assert curve.fraction(curve.points[1], "pgmoe, on_demand").text(4) == "0.2875 (0.1250-0.4500)"
    assert curve.fraction(curve.points[1], "llama.cpp").text(5) == "0.01875 (0.01250-0.02500)"


def test_an_engine_without_resident_rounds_is_taken_over_ours() -> None:
    curve = made_up_curve()
    assert curve.fraction(curve.points[1], "accelerate").text(4) == "0.0375 (0.0250-0.0500)"


def test_the_roofline_is_the_slower_of_compute_and_link() -> None:
    curve = made_up_curve()
    assert curve.efficiency(curve.points[1], "pgmoe, on_demand").text(3) == "0.950 (0.900-1.000)"
    assert curve.roofline(curve.points[1], "pgmoe, on_demand").text(4) == "0.3125 (0.1250-0.5000)"
    assert curve.roofline(curve.points[0], "pgmoe, on_demand").text(1) == "1.0"


def test_a_saved_curve_comes_back_whole(tmp_path: Path) -> None:
    assert load_result(made_up_curve().save(tmp_path)) == made_up_curve()


def test_a_curves_report_has_a_row_for_each_line_and_share() -> None:
    report = render_curve(made_up_curve())
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in report.splitlines() if "% |" in line]
    row = next(r for r in rows if r[:2] == ["50%", "pgmoe, on_demand"])
    assert row[2:5] == ["7.00 (5.00-9.00)", "0.287 (0.125-0.450)", "0.95 (0.90-1.00)"]
    limits = next(r for r in rows if r[:2] == ["50%", "32"])
    assert limits[2:5] == ["2.00 GB", "0.75 (0.50-1.00) GB/s", "100.0 MB"]
    assert "- 50%: **pgmoe, on_demand** decodes 9.50 (9.00-10.00) times as fast as **llama.cpp**" in report
    assert render_result(made_up_curve()) == report


def test_a_peer_that_could_not_run_at_a_share_is_neither_shown_nor_drawn_there(tmp_path: Path) -> None:
    whole = made_up_curve()
    half = replace(whole.points[1], series=whole.points[1].series[:2])
    curve = replace(whole, points=(whole.points[0], half))
    assert "| 50% | accelerate |" not in render_curve(curve)
    assert "| 100% | accelerate |" in render_curve(curve)
    draw_result(curve, tmp_path / "picture.png")


def test_a_curve_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_result(made_up_curve(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def with_waits(curve: CurveResult, waits: tuple[float, ...]) -> CurveResult:
    """The first line at half of the experts waited so many seconds in each layer."""

    def waited(one: Series) -> Series:
        traffic = Traffic(1, 1, 1, sum(waits), layer_stall_s=waits)
        rounds = [replace(m, answer=replace(m.answer, traffic=traffic)) for m in one.rounds]
        return replace(one, rounds=tuple(rounds))

    whole, half = curve.points
    first, *others = half.series
    return replace(curve, points=(whole, replace(half, series=(waited(first), *others))))


def test_waiting_is_shown_by_layer(tmp_path: Path) -> None:
    curve = with_waits(made_up_curve(), (0.04, 0.004, 0.008))
    assert layer_waits(curve.points[1].series[0]) == (0.01, 0.001, 0.002)
    assert layer_waits(curve.points[1].series[1]) is None
    assert "| 50% | pgmoe, on_demand | 10.00 | 1.50 | 2.00 |" in render_curve(curve)


def test_waiting_is_drawn_by_layer(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = with_waits(made_up_curve(), (0.04, 0.004, 0.008)).save(tmp_path)
    run = CliRunner().invoke(app, ["bench", "plot", str(path), "--stalls"])
    picture = path.with_suffix(".stalls.png")
    assert run.stdout.strip() == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_curve_of_before_waits_were_kept_has_no_picture_of_them(tmp_path: Path) -> None:
    assert "in the first layer" not in render_curve(made_up_curve())
    with pytest.raises(ConfigError, match="measure it again"):
        draw_stalls(made_up_curve(), tmp_path / "stalls.png")
    whole = replace(made_up_curve(), points=made_up_curve().points[:1])
    with pytest.raises(ConfigError, match="give --share 50"):
        draw_stalls(whole, tmp_path / "stalls.png")
    with pytest.raises(ConfigError, match="is no curve"):
        draw_stalls(made_up_result(), tmp_path / "stalls.png")
