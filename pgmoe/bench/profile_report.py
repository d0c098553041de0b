"""Where a token's time goes, as Markdown."""

from __future__ import annotations

from collections.abc import Callable

from pgmoe.bench.profile_result import ProfiledSeries, ProfileResult
from pgmoe.bench.statistics import Spread
from pgmoe.bench.tables import conditions, heading, table


def render_profile(result: ProfileResult) -> str:
    """One table of the parts, one of what they stand beside; a column for each share and gating."""
    columns = [p.name for p in result.profiled]
    rate = Spread.of([b / 1e9 for b in result.disk_bytes_per_s])
    return "\n\n".join(
        [
            heading(result),
            table(("ms per token", *columns), _parts(result)),
            table(("per token", *columns), _beside(result)),
            f"The disk's own rate: {rate.text(2)} GB/s.",
            conditions(result),
        ]
    )


def _parts(result: ProfileResult) -> list[list[str]]:
    parts = result.profiled[0].parts_ms
    rows = [[part, *(p.parts_ms[part].text(2) for p in result.profiled)] for part in parts]
    return [*rows, ["**together**", *(p.token_ms.text(2) for p in result.profiled)]]


def _beside(result: ProfileResult) -> list[list[str]]:
    rates = result.disk_bytes_per_s
    rows: dict[str, Callable[[ProfiledSeries], str]] = {
        "CPU of the computing threads, ms": lambda p: p.compute_cpu_ms.text(2),
        "CPU of the readers, ms": lambda p: p.reader_cpu_ms.text(2),
        "link busy, ms": lambda p: p.link_busy_ms.text(2),
        "the bytes read at the disk's rate, ms": lambda p: p.link_least_ms(rates).text(2),
        "Belady's misses at the disk's rate, ms": lambda p: p.belady_least_ms(rates).text(2),
        "read, MB": lambda p: _megabytes(p.read_bytes),
        "hit rate, %": lambda p: _per_cent(p.hit_rate),
        "slots": lambda p: f"{p.num_slots}",
        "the timers' own, by their calls, ms": lambda p: p.timers_ms.text(2),
        "slower with the timers than without, %": lambda p: _per_cent(p.timers_cost),
    }
    return [[what, *(cell(p) for p in result.profiled)] for what, cell in rows.items()]


def _megabytes(num_bytes: Spread) -> str:
    return Spread(num_bytes.median / 1e6, num_bytes.low / 1e6, num_bytes.high / 1e6).text(1)


def _per_cent(share: Spread) -> str:
    return Spread(share.median * 100, share.low * 100, share.high * 100).text(1)
