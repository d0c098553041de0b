"""Quality by level as a picture, in the form of Figure 13 of arXiv 2308.12066."""

from __future__ import annotations

from pathlib import Path

from pgmoe.bench.quality_report import NAMES
from pgmoe.bench.quality_result import QualityResult
from pgmoe.picture import new_figure, save_picture

COLOURS = ("#1b6ca8", "#d1495b")
NUM_METRICS = 2


def plot_quality(result: QualityResult, path: Path) -> None:
    """Draw a panel a task, scores over levels with 95 % intervals, to a PNG; ConfigError as pictures do.

    Tasks that are scored by their loss alone have no panel.
    """
    scored = {
        task: [metric for metric in metrics if metric != "loss"][:NUM_METRICS]
        for task, metrics in result.metrics.items()
        if set(metrics) != {"loss"}
    }
    figure = new_figure(3.6 * len(scored), 3.4)
    panels = figure.subplots(1, len(scored), squeeze=False)[0]
    for axes, (task, metrics) in zip(panels, scored.items(), strict=True):
        for metric, colour in zip(metrics, COLOURS, strict=False):
            cells = [cell for level in result.levels if (cell := result.cell(task, metric, level))]
            levels, means = [c.level for c in cells], [c.score.mean for c in cells]
            bars = [c.score.half_width or 0.0 for c in cells]
            label = NAMES.get(metric, metric)
            axes.errorbar(levels, means, bars, marker="o", ms=4, lw=1.5, capsize=3, color=colour, label=label)
        axes.set_xticks(result.levels)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("level (0: conventional)")
        axes.set_title(task.replace("_", " "), fontsize=10)
        axes.legend(fontsize=8, frameon=False, loc="lower left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("per cent")
    figure.suptitle(f"{result.name}  ·  {result.date[:10]}, {result.commit}", fontsize=9, color="#555555")
    save_picture(figure, path, 110)
