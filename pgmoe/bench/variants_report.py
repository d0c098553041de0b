"""What options do, as Markdown."""

from __future__ import annotations

from pgmoe.bench.tables import conditions, heading, table
from pgmoe.bench.variants_result import Variant, VariantsResult
from pgmoe.units import format_bytes

_TIMES = (
    "options",
    "tokens/s",
    "of the first",
    "first token p50, s",
    "p95, s",
    "later over first",
    "latency p50, s",
    "p95, s",
    "p95 of the first",
    "inter-token p50, ms",
    "p95, ms",
    "longest, ms",
)
_EXPERTS = (
    "options",
    "experts a layer and step",
    "of the first",
    "read for a token",
    "steps",
    "same answers",
)


def render_variants(result: VariantsResult) -> str:
    """Times, experts, and the conditions they hold under."""
    return "\n\n".join(
        [
            heading(result),
            table(_TIMES, [_times(result, variant) for variant in result.variants]),
            table(_EXPERTS, [_experts(result, variant) for variant in result.variants]),
            conditions(result),
        ]
    )


def _times(result: VariantsResult, variant: Variant) -> list[str]:
    def ms(seconds: float) -> float:
        return 1000 * seconds

    later = [r.later_over_first for r in variant.rounds if r.later_over_first is not None]
    return [
        variant.name,
        variant.spread(lambda r: r.streams.tokens_per_s).text(1),
        result.ratio(variant, lambda r: r.streams.tokens_per_s).text(2),
        variant.spread(lambda r: r.streams.first_token.p50_s).text(2),
        variant.spread(lambda r: r.streams.first_token.p95_s).text(2),
        variant.spread(lambda r: r.later_over_first or 0.0).text(3) if later else "",
        variant.spread(lambda r: r.latency.p50_s).text(2),
        variant.spread(lambda r: r.latency.p95_s).text(2),
        result.ratio(variant, lambda r: r.latency.p95_s).text(2),
        variant.spread(lambda r: ms(r.streams.inter_token.p50_s)).text(0),
        variant.spread(lambda r: ms(r.streams.inter_token.p95_s)).text(0),
        variant.spread(lambda r: ms(r.longest_gap_s)).text(0),
    ]


def _experts(result: VariantsResult, variant: Variant) -> list[str]:
    read = variant.spread(lambda r: sum(r.streams.steps.missing_bytes) / r.streams.num_tokens)
    return [
        variant.name,
        variant.spread(lambda r: r.streams.experts_per_layer).text(2),
        result.ratio(variant, lambda r: r.streams.experts_per_layer).text(2),
        format_bytes(int(read.median)),
        f"{variant.spread(lambda r: len(r.streams.steps.seconds)).median:g}",
        f"{variant.spread(lambda r: r.streams.num_same).median:g} of {result.num_requests}",
    ]
