"""Where in a model compute waits for experts, as a picture."""

from __future__ import annotations

from pathlib import Path

from pgmoe.bench.curve_plot import colours
from pgmoe.bench.curve_result import CurvePoint, CurveResult, layer_waits
from pgmoe.errors import ConfigError
from pgmoe.picture import new_figure, save_picture


def plot_stalls(result: CurveResult, path: Path) -> None:
    """Draw milliseconds a token over the layers to a PNG, a panel for each share below 100 %.

    Raises ConfigError for a result that has no such share or is from before layers were told apart, and as
    pictures do.
    """
    points = [point for point in result.points if point.share < 100]
    if not points:
        raise ConfigError(f"{result.name} has no share below 100 %, where something waits; give --share 50")
    if not any(map(_known, points)):
        raise ConfigError(f"{result.name} says nothing of single layers; measure it again with this version")
    figure, colour_of = new_figure(3.6 * len(points) + 1, 3.8), colours(result)
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for point, axes in zip(points, panels, strict=True):
        for line, waits in _known(point).items():
            axes.plot([1e3 * s for s in waits], "o-", color=colour_of[line], lw=1.3, ms=3, label=line)
        axes.set_title(f"{point.share:g}% of the experts in memory", fontsize=10)
        axes.set_xlabel("MoE layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("waited for experts (ms per token)")
    panels[0].set_ylim(bottom=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        frameon=False,
    )
    figure.suptitle(f"{result.name}  ·  {result.date[:10]}, {result.commit}", fontsize=9, color="#555555")
    save_picture(figure, path, 120)


def _known(point: CurvePoint) -> dict[str, tuple[float, ...]]:
    found = {series.name: layer_waits(series) for series in point.series}
    return {line: waits for line, waits in found.items() if waits is not None}
