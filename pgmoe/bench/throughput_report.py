"""Speed against the number of streams, as Markdown."""

from __future__ import annotations

from pgmoe.bench.statistics import paired_ratio
from pgmoe.bench.tables import conditions, gb, heading, table
from pgmoe.bench.throughput_result import StreamsPoint, StreamsSeries, ThroughputResult
from pgmoe.units import format_bytes

_SPEEDS = (
    "streams",
    "engine",
    "tokens/s",
    "of pgmoe, 100%",
    "first token p50, s",
    "p95, s",
    "inter-token p50, ms",
    "p95, ms",
    "same answers",
    "RSS",
)
_STEPS = (
    "streams",
    "engine",
    "of the roofline",
    "steps",
    "experts a layer and step",
    "read for a step",
    "link, GB/s",
)


def render_throughput(result: ThroughputResult) -> str:
    """Speeds of all, steps of ours, ours over the others, and the conditions they hold under."""
    rows = [(point, series) for point in result.by_streams for series in point.series]
    return "\n\n".join(
        [
            heading(result),
            table(_SPEEDS, [_speed_row(point, series) for point, series in rows]),
            table(_STEPS, [_step_row(p, s) for p, s in rows if s.share is not None]),
            *_ratios(result),
            conditions(result),
        ]
    )


def _speed_row(point: StreamsPoint, series: StreamsSeries) -> list[str]:
    return [
        str(point.num_streams),
        series.name,
        series.spread(lambda r: r.tokens_per_s).text(1),
        "1" if series is point.resident else point.ratio(series).text(2),
        series.spread(lambda r: r.first_token.p50_s).text(2),
        series.spread(lambda r: r.first_token.p95_s).text(2),
        series.spread(lambda r: 1000 * r.inter_token.p50_s).text(0),
        series.spread(lambda r: 1000 * r.inter_token.p95_s).text(0),
        f"{series.spread(lambda r: r.num_same).median:g} of {point.num_requests}",
        gb(series.rounds[-1].memory.rss_bytes),
    ]


def _step_row(point: StreamsPoint, series: StreamsSeries) -> list[str]:
    efficiency = point.efficiency(series)
    read = series.spread(lambda r: sum(r.steps.missing_bytes) / len(r.steps.seconds))
    return [
        str(point.num_streams),
        series.name,
        "" if efficiency is None else efficiency.text(2),
        f"{series.spread(lambda r: len(r.steps.seconds)).median:g}",
        series.spread(lambda r: r.experts_per_layer).text(1),
        format_bytes(int(read.median)),
        "" if efficiency is None else series.spread(lambda r: r.link_bytes_per_s / 1e9).text(2),
    ]


def _ratios(result: ThroughputResult) -> list[str]:
    """Times as fast as each other engine, with as many streams, in the same round."""
    ours = _names(result, of_ours=True)
    others = _names(result, of_ours=False)
    rows = [
        [str(point.num_streams), name, *(_over(point, name, other) for other in others)]
        for point in result.by_streams
        for name in ours
    ]
    return [table(("streams", "times as fast as", *others), rows)] if others else []


def _names(result: ThroughputResult, *, of_ours: bool) -> list[str]:
    found = (s.name for p in result.by_streams for s in p.series if (s.share is not None) == of_ours)
    return list(dict.fromkeys(found))


def _over(point: StreamsPoint, name: str, other: str) -> str:
    one, two = point.of(name), point.of(other)
    return "" if one is None or two is None else paired_ratio(one.speeds, two.speeds).text(2)
