"""Arms beside each other as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pgmoe.bench.compare import Series
from pgmoe.bench.result import Result
from pgmoe.bench.statistics import Spread, first_difference, paired_ratio
from pgmoe.bench.tables import conditions, gb, heading, table
from pgmoe.units import format_bytes

_COLUMNS = (
    "arm",
    "tokens/s",
    "first token, s",
    "hit rate",
    "read per token",
    "waited",
    "RSS",
    "files",
    "peak",
    "tokens",
)


def render(result: Result) -> str:
    """Tables of speeds, ratios and loads, and the conditions they hold under."""
    return "\n\n".join(
        [
            heading(result),
            table(_COLUMNS, [_speed_row(result, s) for s in result.series]),
            _ratios(result),
            *([f"> {result.texts[0]}".replace("\n", "\n> ")] if result.texts else []),
            *_cold_starts(result),
            conditions(result),
        ]
    )


def traffic_cells(series: Series) -> list[str]:
    """Hit rate, bytes read per token and share of time waited; empty where the arm counts none."""
    counted = [(m.answer.traffic, m.answer) for m in series.rounds if m.answer.traffic is not None]
    if not counted:
        return ["", "", ""]
    hits = median(t.hits / max(t.hits + t.misses, 1) for t, _ in counted)
    read = median(t.num_bytes / (len(a.tokens) - 1) for t, a in counted)
    waited = median(t.stall_s / a.decode_s for t, a in counted)
    return [f"{hits:.1%}", format_bytes(int(read)), f"{waited:.0%}"]


def agreement(series: Series, expected: Sequence[int]) -> str:
    """How the arm's tokens in every round compare to these."""
    found = [first_difference(m.answer.tokens, expected) for m in series.rounds]
    differing = [position for position in found if position is not None]
    length = len(series.rounds[0].answer.tokens)
    if not differing:
        return f"{length} the same"
    return f"{length}, differ from number {min(differing) + 1}"


def _speed_row(result: Result, series: Series) -> list[str]:
    first_token = Spread.of([m.answer.first_token_s for m in series.rounds])
    last = series.rounds[-1].memory
    sizes = [last.rss_bytes, last.file_bytes, last.peak_rss_bytes]
    return [
        series.name,
        Spread.of(series.speeds).text(2),
        first_token.text(2),
        *traffic_cells(series),
        *(gb(size) for size in sizes),
        agreement(series, result.series[0].rounds[0].answer.tokens),
    ]


def _ratios(result: Result) -> str:
    lines = []
    for pair in result.pairs:
        ratio = paired_ratio(result.of(pair.arm).speeds, result.of(pair.baseline).speeds)
        lines.append(f"- **{pair.arm}** decodes {ratio.text(2)} times as fast as **{pair.baseline}**")
    return "\n".join(lines)


def _cold_starts(result: Result) -> list[str]:
    loaded = [s for s in result.series if s.loads]
    columns = ("cold start", "s", "peak RSS", "times")
    return [table(columns, [_load_row(s) for s in loaded])] if loaded else []


def _load_row(series: Series) -> list[str]:
    seconds = Spread.of([load.seconds for load in series.loads])
    peak = max(load.memory.peak_rss_bytes for load in series.loads)
    return [series.name, seconds.text(2), gb(peak), str(len(series.loads))]
