"""A curve as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from pgmoe.bench.compare import Series
from pgmoe.bench.curve_result import CurvePoint, CurveResult, layer_waits
from pgmoe.bench.report import traffic_cells
from pgmoe.bench.statistics import Spread, paired_ratio
from pgmoe.bench.tables import conditions, gb, heading, table

_COLUMNS = (
    "experts in memory",
    "line",
    "tokens/s",
    "of all resident",
    "of the roofline",
    "hit rate",
    "read per token",
    "waited",
    "guessed per token: useful, late, wasted",
    "RSS",
    "tokens",
)


def render_curve(result: CurveResult) -> str:
    """All points and lines, what each point allows, lines over each other, and where compute waited."""
    rows = [_row(result, point, series) for point in result.points for series in point.series]
    return "\n\n".join(
        [
            heading(result),
            table(_COLUMNS, rows),
            table(
                ("experts in memory", "slots", "memory limit", "link", "Belady reads per token", "roofline"),
                [_limits(result, point) for point in result.points],
            ),
            *_ratios(result),
            *_stalls(result),
            conditions(result),
        ]
    )


def _row(result: CurveResult, point: CurvePoint, series: Series) -> list[str]:
    line = series.name
    return [
        f"{point.share:g}%",
        line,
        Spread.of(series.speeds).text(2),
        result.fraction(point, line).text(3),
        result.efficiency(point, line).text(2),
        *traffic_cells(series),
        _guessed(series),
        gb(series.rounds[-1].memory.rss_bytes),
        _agreement(series, point.references[0].rounds[0].answer.tokens),
    ]


def _guessed(series: Series) -> str:
    """Megabytes per token that were read before they were asked for, by what became of them."""
    outcomes = [
        (t.useful_bytes, t.late_bytes, t.wasted_bytes, len(m.answer.tokens) - 1)
        for m in series.rounds
        if (t := m.answer.traffic) is not None
    ]
    if not any(useful + late + wasted for useful, late, wasted, _ in outcomes):
        return ""
    *sums, num_tokens = (sum(column) for column in zip(*outcomes, strict=True))
    return ", ".join(f"{num_bytes / num_tokens / 1e6:.2f}" for num_bytes in sums) + " MB"


def _agreement(series: Series, expected: Sequence[int]) -> str:
    """Positions at which the most probable token is that of the first reference, in the worst round."""
    rounds = [m.answer.tokens for m in series.rounds]
    same = min(sum(a == b for a, b in zip(tokens, expected, strict=False)) for tokens in rounds)
    return f"{same} of {len(rounds[0])} the same"


def _stalls(result: CurveResult) -> list[str]:
    """Where in the model compute waited, of lines that waited and tell layers apart."""
    rows = []
    for point in result.points:
        for series in point.series:
            if (waits := layer_waits(series)) is not None and any(waits):
                first, *others = (1e3 * wait for wait in waits)
                cells = (mean(others), max(others)) if others else ()
                rows.append([f"{point.share:g}%", series.name, *(f"{wait:.2f}" for wait in (first, *cells))])
    columns = (
        "waited, ms per token",
        "line",
        "in the first layer",
        "in each other, mean",
        "in the worst of them",
    )
    return [table(columns, rows)] if rows else []


def _limits(result: CurveResult, point: CurvePoint) -> list[str]:
    limit = "none" if point.limit_bytes is None else gb(point.limit_bytes)
    if (of_weights := result.limit_share(point)) is not None:
        limit += f", {of_weights:.0f}% of the weights"
    rate = Spread.of([b / 1e9 for b in point.bandwidth]).text(2)
    roof = result.roofline(point, result.lines[0]).text(3)
    least = f"{point.belady_bytes / 1e6:.1f} MB"
    return [f"{point.share:g}%", str(point.num_slots), limit, f"{rate} GB/s", least, roof]


def _ratios(result: CurveResult) -> list[str]:
    """The first line over those of other engines, and others of its own engine over it."""
    first, *others = result.lines
    found = []
    for line in others:
        same = line.partition(",")[0] == first.partition(",")[0]
        fast, slow = (line, first) if same else (first, line)
        for point in (p for p in result.points if p.has(line)):
            ratio = paired_ratio(point.of(fast).speeds, point.of(slow).speeds)
            found.append(
                f"- {point.share:g}%: **{fast}** decodes {ratio.text(2)} times as fast as **{slow}**"
            )
    return ["\n".join(found)] if found else []
