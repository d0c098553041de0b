"""What reads reach and cost, as Markdown."""

from __future__ import annotations

from pgmoe.bench.reads_result import ReadsResult
from pgmoe.bench.statistics import Spread
from pgmoe.bench.tables import conditions, heading, table


def render_reads(result: ReadsResult) -> str:
    """One table of readers, one of the disk's own rate."""
    rows = []
    for series in result.series:
        rate = Spread.of([r.bytes_per_s / 1e9 for r in series.rounds])
        share, slower = result.rate_share(series), result.slowdown(series)
        rows.append([f"{series.num_readers}", rate.text(2), share.text(2), f"{slower.text(3)}"])
    ways: dict[tuple[int, int], list[float]] = {}
    for rates in result.disk:
        for r in rates:
            ways.setdefault((r.block_bytes, r.num_threads), []).append(r.bytes_per_s / 1e9)
    plain = [
        [f"{block / 2**20:.2f} MiB by {threads}", Spread.of(found).text(2)]
        for (block, threads), found in ways.items()
    ]
    alone = Spread.of(list(result.compute_alone_per_s))
    return "\n\n".join(
        [
            heading(result),
            table(("readers", "GB/s", "of the disk's own rate", "compute slower by"), rows),
            f"Experts of {result.expert_bytes / 2**20:.2f} MiB; compute alone: {alone.text(0)} turns/s.",
            table(("plain reads", "GB/s"), plain),
            conditions(result),
        ]
    )
