"""What reads reach and cost, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.bench.reads_result import ReadsResult
from pgmoe.bench.statistics import Spread
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, WANTED = "#1b6ca8", "#d1495b"
LEAST_RATE, MOST_SLOWDOWN = 0.9, 0.1
"""What we want to reach, drawn as lines."""


def plot_reads(result: ReadsResult, path: Path) -> None:
    """Draw the share of the disk's rate and compute's slowdown to a PNG; ConfigError as pictures do."""
    figure = new_figure(8, 3.4)
    left, right = figure.subplots(1, 2)
    names = [f"{series.num_readers}" for series in result.series]
    _bars(left, names, [result.rate_share(series) for series in result.series], LEAST_RATE)
    _bars(right, names, [result.slowdown(series) for series in result.series], MOST_SLOWDOWN)
    left.set_title("Experts read, of the disk's own rate", fontsize=10)
    right.set_title("Compute beside it slower by", fontsize=10)
    figure.suptitle(f"{result.name}  ·  {result.date[:10]}, {result.commit}", fontsize=9, color="#555555")
    save_picture(figure, path, 110)


def _bars(axes: Axes, names: list[str], spreads: list[Spread], wanted: float) -> None:
    axes.axhline(wanted, color=WANTED, lw=1, ls="--")
    ends = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    axes.bar(names, [s.median for s in spreads], width=0.55, color=OURS)
    axes.errorbar(names, [s.median for s in spreads], yerr=ends, fmt="none", ecolor="#222222", capsize=4)
    axes.set_xlabel("readers")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
