"""A curve as a picture: share of the experts in memory against speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.bench.curve_result import CurvePoint, CurveResult
from pgmoe.bench.lines import ACCELERATE, LLAMA_CPP
from pgmoe.bench.statistics import Spread
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = ("#1b6ca8", "#38a3a5", "#5e60ce", "#80b918", "#c77dff")
PEERS = {LLAMA_CPP: "#d1495b", ACCELERATE: "#8d99ae"}
ROOFLINE = "#222222"

Value = Callable[[CurvePoint, str], Spread]
"""What is drawn of a line at a point."""


def plot_curve(result: CurveResult, path: Path) -> None:
    """Draw tokens/s and the share of the resident speed to a PNG. Raises ConfigError as pictures do."""
    figure = new_figure(11, 4.8)
    from matplotlib.ticker import LogLocator, NullFormatter  # only now: it is there

    left, right = figure.subplots(1, 2)
    for line, colour in colours(result).items():
        _draw(left, result, line, colour, lambda p, name: Spread.of(p.of(name).speeds))
        _draw(right, result, line, colour, result.fraction)
    shares = [_x(result, p) for p in result.points]
    first = result.lines[0]
    resident = [Spread.of(result.reference(p, first).speeds).median for p in result.points]
    roofs = [result.roofline(p, first).median for p in result.points]
    roof_label = "roofline: Belady's misses over the link's rate"
    left.plot(shares, [r * f for r, f in zip(resident, roofs, strict=True)], "--", color=ROOFLINE, lw=1.3)
    right.plot(shares, roofs, "--", color=ROOFLINE, lw=1.3, label=roof_label)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_title("Decode speed, batch 1 (tokens/s)", fontsize=10)
    right.set_title("Of the speed with all experts resident", fontsize=10)
    right.set_ylim(0, 1.12)
    right.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    for axes in (left, right):
        axes.set_xlabel(
            "memory limit of the process, of the weights' bytes" if result.by_limit else "experts in memory"
        )
        axes.set_xticks(shares, [f"{s:.3g}%" for s in shares])
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False
    )
    figure.suptitle(_title(result), fontsize=9, color="#555555")
    save_picture(figure, path, 120)


def colours(result: CurveResult) -> dict[str, str]:
    """By line, the same in all pictures of a result."""
    ours = iter(OURS * len(result.lines))
    return {line: PEERS.get(line) or next(ours) for line in result.lines}


def _draw(axes: Axes, result: CurveResult, line: str, colour: str, value: Value) -> None:
    points = [point for point in result.points if point.has(line)]
    spreads, shares = [value(point, line) for point in points], [_x(result, point) for point in points]
    axes.fill_between(
        shares, [s.low for s in spreads], [s.high for s in spreads], color=colour, alpha=0.18, lw=0
    )
    axes.plot(shares, [s.median for s in spreads], "o-", color=colour, lw=1.8, ms=4, label=line)


def _x(result: CurveResult, point: CurvePoint) -> float:
    if not result.by_limit:
        return point.share
    limit = result.limit_share(point)
    assert limit is not None, point.share
    return limit


def _title(result: CurveResult) -> str:
    limited = any(point.limit_bytes is not None for point in result.points)
    memory = "all lines under the same memory limit" if limited else "no memory limit"
    machine = f"{result.machine.num_cores} cores of {result.machine.processor}"
    return "  ·  ".join([result.name, machine, memory, f"{result.date[:10]}, {result.commit}"])
