from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.bench.report import render
from pgmoe.bench.result_file import draw_result, load_result, render_result
from pgmoe.errors import ConfigError
from tests.unit.bench.results import made_up_result

RESULTS = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("*.json"))


def _cells(report: str, first: str) -> list[str]:
    (line,) = [line for line in report.splitlines() if line.startswith(f"| {first} |")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_arms_row_has_speed_hits_bytes_waiting_and_memory() -> None:
    cells = _cells(render(made_up_result()), "fast")
    assert cells[1:7] == ["2.00 (1.00-4.00)", "0.50", "75.0%", "2.0 MiB", "25%", "2.00 GB"]


def test_an_answer_that_differs_says_where() -> None:
    report = render(made_up_result())
    assert _cells(report, "fast")[-1] == "5 the same"
    assert _cells(report, "slow")[-1] == "5, differ from number 3"


def test_ratios_are_taken_within_a_round() -> None:
    assert "**fast** decodes 2.00 times as fast as **slow**" in render(made_up_result())


def test_the_report_says_what_it_holds_for() -> None:
    report = render(made_up_result())
    assert "commit abc1234, with uncommitted changes" in report
    assert "- workload: five tokens" in report
    assert "2 cores of Some CPU (avx2); 16 GiB RAM; accelerator: none; disk: 1.50 GB/s" in report
    assert "> one\n> two" in report


def test_a_saved_result_comes_back_whole(tmp_path: Path) -> None:
    path = made_up_result().save(tmp_path / "results")
    assert path.name == "made-up-2026-01-02-abc1234.json"
    assert load_result(path) == made_up_result()


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match=r"other\.json is not a result"):
        load_result(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_result(tmp_path / "none.json")


def test_a_result_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_result(made_up_result(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_result_can_be_shown(path: Path) -> None:
    assert render_result(load_result(path)).startswith("### ")
