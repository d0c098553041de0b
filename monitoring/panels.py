"""What the dashboard shows, as data: rows of panels, each panel its queries and the unit of its axis."""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.promql import now, per_second, quantile, share, utilisation
from pgmoe.metrics import names
from pgmoe.metrics.names import Metric

GRID_WIDTH = 24
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Query:
    """One PromQL expression; `legend` is Grafana's template of a line's name."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One graph."""

    title: str
    help: str
    unit: str
    """Grafana's name of it: `s`, `Bps` (bytes per second), `cps` (events per second), `percentunit` (0..1)"""
    queries: tuple[Query, ...]
    width: int = 6
    """Columns of `GRID_WIDTH`."""
    max: float | None = None
    """Top of the axis where the values have one; the bottom is always 0."""


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _query(expr: str, line: str) -> Query:
    return Query(expr, f"{{{{model_name}}}} {line}")


def _latency(title: str, histogram: Metric, width: int = 8) -> Panel:
    quantiles = tuple(_query(quantile(rank, histogram), f"p{rank * 100:g}") for rank in QUANTILES)
    return Panel(title, histogram.help, "s", quantiles, width)


TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Requests",
            f"{names.REQUESTS_RUNNING.help} {names.REQUESTS_WAITING.help}",
            "short",
            (
                _query(now(names.REQUESTS_RUNNING), "running"),
                _query(now(names.REQUESTS_WAITING), "waiting"),
            ),
        ),
        Panel(
            "Requests ended per second",
            names.REQUESTS_FINISHED.help,
            "reqps",
            (_query(per_second(names.REQUESTS_FINISHED, "finished_reason"), "{{finished_reason}}"),),
        ),
        Panel(
            "Tokens per second",
            f"{names.PROMPT_TOKENS.help} {names.GENERATION_TOKENS.help}",
            "suffix: tok/s",
            (
                _query(per_second(names.PROMPT_TOKENS), "prompt"),
                _query(per_second(names.GENERATION_TOKENS), "generated"),
            ),
        ),
        _latency("Queue time", names.QUEUE_TIME, width=6),
        _latency("Time to first token", names.TIME_TO_FIRST_TOKEN),
        _latency("Inter-token latency", names.INTER_TOKEN_LATENCY),
        _latency("Request latency", names.E2E_LATENCY),
    ),
)

KV_CACHE = Row(
    "KV cache",
    (
        Panel(
            "Blocks",
            f"{names.KV_USED_BLOCKS.help} Near all of them, answers wait or give way.",
            "short",
            (_query(now(names.KV_USED_BLOCKS), "used"), _query(now(names.KV_BLOCKS), "all")),
            width=8,
        ),
        Panel(
            "Out of order per second",
            f"Preemptions: {names.PREEMPTIONS.help} Preferred: {names.PREFERRED.help}",
            "cps",
            (
                _query(per_second(names.PREEMPTIONS), "preemptions"),
                _query(per_second(names.PREFERRED), "preferred"),
            ),
            width=8,
        ),
        Panel(
            "Prefix cache",
            "Prompt tokens a second: looked up, and found, which are not computed again.",
            "suffix: tok/s",
            (
                _query(per_second(names.PREFIX_QUERIES), "looked up"),
                _query(per_second(names.PREFIX_HITS), "found"),
            ),
            width=8,
        ),
    ),
)

EXPERTS = Row(
    "Experts",
    (
        Panel(
            "Hit rate",
            "Share of the experts needed that were in a slot already.",
            "percentunit",
            (_query(share(names.EXPERT_HITS, names.EXPERT_MISSES), "all layers"),),
            max=1,
        ),
        Panel(
            "Hit rate by layer",
            "A layer far below the others has too few slots for its traffic.",
            "percentunit",
            (_query(share(names.EXPERT_HITS, names.EXPERT_MISSES, "layer"), "layer {{layer}}"),),
            max=1,
        ),
        Panel(
            "Misses and evictions per second",
            f"{names.EXPERT_MISSES.help} {names.EXPERT_EVICTIONS.help}",
            "cps",
            (
                _query(per_second(names.EXPERT_MISSES), "misses"),
                _query(per_second(names.EXPERT_EVICTIONS), "evictions"),
            ),
        ),
        Panel(
            "Slots",
            f"{names.EXPERT_RESIDENT.help} {names.EXPERT_SLOTS.help}",
            "short",
            (_query(now(names.EXPERT_RESIDENT), "filled"), _query(now(names.EXPERT_SLOTS), "slots")),
        ),
        Panel(
            "Expert bytes per second",
            names.TRANSFER_BYTES.help,
            "Bps",
            (_query(per_second(names.TRANSFER_BYTES, "link", "reason"), "{{link}} {{reason}}"),),
            width=8,
        ),
        _latency("Transfer time", names.TRANSFER_TIME),
        Panel(
            "Stall",
            "Share of the time that a replica's compute waits for experts. Near 1: the link is the limit.",
            "percentunit",
            (_query(per_second(names.STALL_TIME, "replica"), "{{replica}}"),),
            width=8,
            max=1,
        ),
    ),
)

LINKS = Row(
    "Prefetch and links",
    (
        Panel(
            "Prefetched bytes per second",
            f"Do guesses pay? {names.PREFETCH_BYTES.help}",
            "Bps",
            (_query(per_second(names.PREFETCH_BYTES, "outcome"), "{{outcome}}"),),
            width=8,
        ),
        Panel(
            "Guessing",
            f"Has it switched itself off? Replicas that guess now. {names.PREFETCH_ON.help}",
            "short",
            (_query(now(names.PREFETCH_ON), "replicas that guess"),),
            width=8,
        ),
        Panel(
            "Guessing switched per second",
            f"Is it undecided? {names.PREFETCH_SWITCHES.help}",
            "cps",
            (_query(per_second(names.PREFETCH_SWITCHES), "switches"),),
            width=8,
        ),
        Panel(
            "Link utilisation",
            "Is a link the limit? Bytes moved, as a share of what the link carried when it was measured.",
            "percentunit",
            (_query(utilisation(names.TRANSFER_BYTES, names.LINK_BANDWIDTH, "link"), "{{link}}"),),
            width=8,
        ),
        Panel(
            "Link busy",
            f"Does a link rest? {names.LINK_BUSY.help} As a share of the time, summed over replicas.",
            "percentunit",
            (_query(per_second(names.LINK_BUSY, "link"), "{{link}}"),),
            width=8,
        ),
        Panel(
            "Stall by layer",
            "Which layers does compute wait for? As a share of the time, summed over replicas.",
            "percentunit",
            (_query(per_second(names.STALL_TIME, "layer"), "layer {{layer}}"),),
            width=8,
        ),
    ),
)

ROWS = (TRAFFIC, KV_CACHE, EXPERTS, LINKS)
