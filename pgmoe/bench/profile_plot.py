"""Where a token's time goes, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.bench.profile_result import ProfileResult
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#8d99ae", "#1b6ca8", "#d1495b", "#edae49", "#80b918", "#5e60ce", "#38a3a5")
"""In the order of the parts."""
BAR = 0.62
LEAST_LABELLED_MS = 4.0
"""Shorter pieces have no room for their number."""


def plot_profile(result: ProfileResult, path: Path) -> None:
    """Draw a bar of parts for each share and gating to a PNG. Raises ConfigError as pictures do."""
    figure = new_figure(10, 1.9 + 0.5 * len(result.profiled))
    axes = figure.subplots()
    _bars(axes, result)
    _least(axes, result)
    axes.set_yticks(range(len(result.profiled)), [p.name for p in result.profiled])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(sum(p.middle_ms.values()) for p in result.profiled))
    axes.set_xlabel("ms per token, in each one's middle round")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[1:] + handles[:1],
        names[1:] + names[:1],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        frameon=False,
    )
    machine = f"{result.machine.num_cores} cores of {result.machine.processor}"
    title = "  ·  ".join([result.name, machine, f"{result.date[:10]}, {result.commit}"])
    figure.suptitle(title, fontsize=9, color="#555555")
    save_picture(figure, path, 120)


def _bars(axes: Axes, result: ProfileResult) -> None:
    places = range(len(result.profiled))
    ends = [0.0] * len(places)
    middles = [p.middle_ms for p in result.profiled]
    for number, part in enumerate(middles[0]):
        widths = [middle[part] for middle in middles]
        colour = COLOURS[number % len(COLOURS)]
        bars = axes.barh(places, widths, left=ends, height=BAR, color=colour, label=part)
        labels = [f"{width:.0f}" if width >= LEAST_LABELLED_MS else "" for width in widths]
        axes.bar_label(bars, labels, label_type="center", fontsize=9, color="white")
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, end in enumerate(ends):
        axes.annotate(f"{end:.0f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=9)


def _least(axes: Axes, result: ProfileResult) -> None:
    """A mark where the disk would have carried the bytes read."""
    least = [p.link_least_ms(result.disk_bytes_per_s).median for p in result.profiled]
    shown = [(place, ms) for place, ms in enumerate(least) if ms > 0]
    axes.vlines(
        [ms for _, ms in shown],
        [place - BAR / 2 - 0.08 for place, _ in shown],
        [place + BAR / 2 + 0.08 for place, _ in shown],
        color="#222222",
        lw=1.6,
        ls=":",
        label="bytes read at the disk's rate",
    )
