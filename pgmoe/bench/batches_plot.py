"""Speed against the batch size, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.bench.batches_result import RESIDENT, BatchesResult
from pgmoe.bench.statistics import Spread
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#222222", "#1b6ca8", "#d1495b", "#38a3a5", "#80b918", "#5e60ce")
"""Of the resident line, then of the gatings."""


def plot_batches(result: BatchesResult, path: Path) -> None:
    """Draw tokens/s and the share of the resident speed to a PNG. Raises ConfigError as pictures do."""
    figure = new_figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    for number, line in enumerate(result.lines):
        colour = COLOURS[number % len(COLOURS)]
        _draw(left, result, line, colour, [Spread.of(p.speeds(line)) for p in result.batches])
        if line != RESIDENT:
            _draw(right, result, line, colour, [p.ratio(line, RESIDENT) for p in result.batches])
    left.set_title("Decode speed of all sequences together (tokens/s)", fontsize=10)
    right.set_title("Of the speed with all experts resident", fontsize=10)
    right.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sequences in a pass")
        axes.set_xscale("log", base=2)
        axes.set_xticks([p.batch for p in result.batches], [str(p.batch) for p in result.batches])
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False
    )
    title = [result.name, f"{result.share:g}% of the experts in memory", result.date[:10], result.commit]
    figure.suptitle("  ·  ".join(title), fontsize=9, color="#555555")
    save_picture(figure, path, 120)


def _draw(axes: Axes, result: BatchesResult, line: str, colour: str, spreads: list[Spread]) -> None:
    sizes = [point.batch for point in result.batches]
    axes.fill_between(
        sizes, [s.low for s in spreads], [s.high for s in spreads], color=colour, alpha=0.18, lw=0
    )
    axes.plot(sizes, [s.median for s in spreads], "o-", color=colour, lw=1.8, ms=4, label=line)
