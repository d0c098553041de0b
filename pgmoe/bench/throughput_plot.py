"""Speed against the number of streams, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.bench.statistics import Spread
from pgmoe.bench.throughput_result import StreamsPoint, StreamsSeries, ThroughputResult
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = ("#222222", "#1b6ca8", "#38a3a5", "#80b918", "#b5c99a")
OTHERS = ("#d1495b", "#5e60ce", "#e09f3e")
Value = Callable[[StreamsPoint, StreamsSeries], Spread | None]


def plot_throughput(result: ThroughputResult, path: Path) -> None:
    """Draw speed, inter-token times and roofline efficiency to a PNG. Raises ConfigError as pictures do."""
    figure = new_figure(13, 4.4)
    speed, gap, roofline = figure.subplots(1, 3)
    _draw(speed, result, lambda _, series: series.spread(lambda r: r.tokens_per_s))
    _draw(gap, result, lambda _, series: series.spread(lambda r: r.inter_token.p95_s))
    _draw(roofline, result, lambda point, series: point.efficiency(series))
    speed.set_title("Tokens/s of all streams together", fontsize=10)
    gap.set_title("Inter-token time, 95th percentile (s)", fontsize=10)
    roofline.set_title("Ours, of the roofline", fontsize=10)
    roofline.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    for axes in (speed, gap, roofline):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("streams")
        axes.set_xscale("log", base=2)
        numbers = [point.num_streams for point in result.by_streams]
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *speed.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False
    )
    title = [result.name, *(["emulated link"] if result.emulated else []), result.date[:10], result.commit]
    figure.suptitle("  ·  ".join(title), fontsize=9, color="#555555")
    save_picture(figure, path, 120)


def _draw(axes: Axes, result: ThroughputResult, value: Value) -> None:
    """A line for each arm that has the value."""
    colours = _colours(result)
    for arm in result.arms:
        found = [
            (point.num_streams, spread)
            for point in result.by_streams
            if (series := point.of(arm)) is not None and (spread := value(point, series)) is not None
        ]
        if not found:
            continue
        numbers, spreads = [n for n, _ in found], [s for _, s in found]
        low, high = [s.low for s in spreads], [s.high for s in spreads]
        axes.fill_between(numbers, low, high, color=colours[arm], alpha=0.18, lw=0)
        middles = [s.median for s in spreads]
        axes.plot(numbers, middles, "o-", color=colours[arm], lw=1.8, ms=4, label=arm)


def _colours(result: ThroughputResult) -> dict[str, str]:
    ours = {s.name for point in result.by_streams for s in point.series if s.share is not None}
    others = [arm for arm in result.arms if arm not in ours]
    chosen = {arm: OURS[n % len(OURS)] for n, arm in enumerate(a for a in result.arms if a in ours)}
    return chosen | {arm: OTHERS[n % len(OTHERS)] for n, arm in enumerate(others)}
