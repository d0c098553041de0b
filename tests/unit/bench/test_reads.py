"""Reads beside compute, on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgmoe.bench.compute_load import ComputeLoad
from pgmoe.bench.disk_rate import DiskRate
from pgmoe.bench.random_model import OlmoeShape, save_random_olmoe
from pgmoe.bench.reads import measure_reads
from pgmoe.bench.reads_report import render_reads
from pgmoe.bench.reads_result import ReadsResult, ReadsRound, ReadsSeries
from pgmoe.bench.result_file import draw_result, load_result
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.models.loader import read_plan
from tests.unit.bench.results import MACHINE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads") / "model"
    save_random_olmoe(folder, OlmoeShape(4000, 128, 2, 4, 16, 2, 256), torch.device("cpu"))
    return folder


def test_a_measurement_from_start_to_table(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(read_plan(str(model)).layers)
    direct = store.direct_io
    store.close()
    if not direct:
        pytest.skip("this file system has no O_DIRECT")
    monkeypatch.setattr("pgmoe.bench.reads.RATE_BYTES", 2**22)
    monkeypatch.setattr("pgmoe.bench.machine.NUM_BLOCKS", 1)
    threads = torch.get_num_threads()
    result = measure_reads(str(model), [1, 2], 2, 0.02, lambda *step: None)
    assert torch.get_num_threads() == threads
    assert [(s.num_readers, len(s.rounds)) for s in result.series] == [(1, 2), (2, 2)]
    assert all(r.bytes_per_s > 0 and r.compute_per_s > 0 for s in result.series for r in s.rounds)
    assert len(result.disk) == len(result.compute_alone_per_s) == 2
    assert load_result(result.save(tmp_path)) == result


def test_compute_is_a_token_through_experts_as_they_are_stored(model: Path) -> None:
    layers = read_plan(str(model)).layers
    store = DiskStore(layers)
    try:
        load = ComputeLoad(layers, store)
    finally:
        store.close()
    assert load.run(0) > 0
    assert len({weights["up"].sum().item() for weights in load._weights}) == 16


def made_up_reads() -> ReadsResult:
    """Two readers that reach 90 % and 80 % of the disk's rate, and slow compute by 5 and 10 %."""
    return ReadsResult(
        name="reads-made-up",
        date="2026-01-02T03:04:05+00:00",
        commit="abc1234",
        machine=MACHINE,
        conditions={"workload": "experts"},
        expert_bytes=3 * 2**20,
        disk=((DiskRate(1, 2**20, 1e9), DiskRate(4, 2**20, 2e9)), (DiskRate(1, 2**20, 4e9),)),
        compute_alone_per_s=(100.0, 200.0),
        series=(ReadsSeries(2, (ReadsRound(1.8e9, 95.0), ReadsRound(3.2e9, 180.0))),),
    )


def test_shares_are_of_the_rounds_best_plain_rate_and_of_compute_alone() -> None:
    result = made_up_reads()
    (series,) = result.series
    assert result.rate_share(series).text(3) == "0.850 (0.800-0.900)"
    assert result.slowdown(series).text(3) == "0.075 (0.050-0.100)"
    assert result.disk_bytes_per_s == [2e9, 4e9]


def test_a_report_has_a_row_for_each_number_of_readers_and_each_plain_way() -> None:
    report = render_reads(made_up_reads())
    assert "| 2 | 2.50 (1.80-3.20) | 0.85 (0.80-0.90) | 0.075 (0.050-0.100) |" in report
    assert "| 1.00 MiB by 4 | 2.00 |" in report


def test_reads_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_result(made_up_reads(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
