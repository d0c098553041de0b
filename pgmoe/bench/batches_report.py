"""Speed against the batch size, as Markdown."""

from __future__ import annotations

from pgmoe.bench.batches_result import RESIDENT, BatchesResult, BatchPoint
from pgmoe.bench.report import traffic_cells
from pgmoe.bench.statistics import Spread
from pgmoe.bench.tables import conditions, heading, table

_COLUMNS = ("batch", "line", "tokens/s", "of all resident", "hit rate", "read per step", "waited", "prefill")


def render_batches(result: BatchesResult) -> str:
    """A row for each batch size and line, and every gating over the first."""
    rows = [_row(point, line) for point in result.batches for line in result.lines]
    return "\n\n".join([heading(result), table(_COLUMNS, rows), *_ratios(result), conditions(result)])


def _row(point: BatchPoint, line: str) -> list[str]:
    series = point.of(line)
    return [
        str(point.batch),
        line,
        Spread.of(point.speeds(line)).text(1),
        "1" if line == RESIDENT else point.ratio(line, RESIDENT).text(2),
        *traffic_cells(series),
        f"{Spread.of([m.answer.first_token_s for m in series.rounds]).text(2)} s",
    ]


def _ratios(result: BatchesResult) -> list[str]:
    _, first, *others = result.lines
    found = [
        f"- batch {point.batch}: **{line}** decodes {point.ratio(line, first).text(2)} times as fast as "
        f"**{first}**"
        for line in others
        for point in result.batches
    ]
    return ["\n".join(found)] if found else []
