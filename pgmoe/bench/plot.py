"""A result as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.bench.result import Result
from pgmoe.bench.statistics import Spread
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS = "#2a6f97", "#a9adb3"
BAR = 0.62


def plot(result: Result, path: Path) -> None:
    """Draw speeds and memory of all arms to a PNG. Raises ConfigError as pictures do."""
    names = [s.name for s in result.series]
    figure = new_figure(9.5, 1.3 + 0.45 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    colours = [OURS if name.startswith("pgmoe") else OTHERS for name in names]
    _bars(left, [Spread.of(s.speeds) for s in result.series], colours, "tokens/s")
    memory = [s.rounds[-1].memory for s in result.series]
    _bars(right, [Spread.of([m.rss_bytes / 1e9]) for m in memory], colours, "GB")
    files = [m.file_bytes / 1e9 for m in memory]
    own = [(m.rss_bytes - m.file_bytes) / 1e9 for m in memory]
    right.barh(range(len(files)), files, left=own, height=BAR, color="white", alpha=0.55)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_title("Decode speed, batch 1 (median and range)", fontsize=10)
    right.set_title("Memory (RSS; pale: mapped files)", fontsize=10)
    figure.suptitle(
        f"{result.name}  ·  {result.machine.num_cores} cores of {result.machine.processor}  ·  "
        f"{result.date[:10]}, {result.commit}",
        fontsize=9,
        color="#555555",
    )
    save_picture(figure, path, 110)


def _bars(axes: Axes, spreads: list[Spread], colours: list[str], unit: str) -> None:
    middles = [s.median for s in spreads]
    ends = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    axes.barh(range(len(spreads)), middles, height=BAR, color=colours)
    if any(s.low < s.high for s in spreads):
        axes.errorbar(
            middles, range(len(spreads)), xerr=ends, fmt="none", ecolor="#222222", elinewidth=1.2, capsize=3
        )
    reach = max(s.high for s in spreads)
    for place, spread in enumerate(spreads):
        axes.text(
            spread.high + 0.02 * reach,
            place,
            f"{spread.median:.{1 if spread.median >= 10 else 2}f}",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, reach * 1.14)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
