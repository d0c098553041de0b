"""Results made of plain numbers."""

from __future__ import annotations

from pgmoe.bench.compare import Series
from pgmoe.bench.job import Answer, Load, Measured, Memory, Traffic
from pgmoe.bench.machine import Machine
from pgmoe.bench.result import Pair, Result

MACHINE = Machine("Some CPU", 2, ("avx2",), 2**34, "6.1", "3.11.7", {"torch": "2.13.0"}, None, 1.5e9)
MEMORY = Memory(rss_bytes=2_000_000_000, file_bytes=500_000_000, peak_rss_bytes=3_000_000_000)


def series(
    name: str, decode_s: list[float], tokens: tuple[int, ...], traffic: Traffic | None = None
) -> Series:
    """An arm whose rounds took so long after a first token that came in half a second."""
    rounds = tuple(Measured(Answer(tokens, 0.5, seconds, traffic), MEMORY) for seconds in decode_s)
    return Series(name, (Load(1.25, MEMORY),), rounds)


def made_up_result() -> Result:
    """A fast arm, and one half as fast that says something else at its third token."""
    return Result(
        name="made-up",
        date="2026-01-02T03:04:05+00:00",
        commit="abc1234+",
        machine=MACHINE,
        conditions={"workload": "five tokens"},
        pairs=(Pair("fast", "slow"),),
        series=(
            series("fast", [1.0, 2.0, 4.0], (1, 2, 3, 4, 5), Traffic(3, 1, 8 * 2**20, 0.5)),
            series("slow", [2.0, 4.0, 8.0], (1, 2, 9, 4, 5)),
        ),
        texts=("one\ntwo", "one"),
    )
