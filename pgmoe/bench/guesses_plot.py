"""How often experts are known early, as a picture."""

from __future__ import annotations

from pathlib import Path

from pgmoe.bench.guesses_result import GuessesResult
from pgmoe.picture import new_figure, save_picture

COLOURS = ("#1b6ca8", "#5fa8d3", "#a9cfe7")
PRE_GATED = "#d1495b"


def plot_guesses(result: GuessesResult, path: Path) -> None:
    """Draw a line for each way of knowing over the layers to a PNG; ConfigError as pictures do."""
    figure = new_figure(8, 4)
    axes = figure.subplots()
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(result.recalls))]
    for line, colour in zip(result.lines, [*colours, PRE_GATED], strict=False):
        known = [(layer, share) for layer, share in enumerate(line.by_layer) if share is not None]
        label = f"{line.name}: {line.mean:.2f}"
        axes.plot(*zip(*known, strict=True), marker="o", ms=3, lw=1.5, color=colour, label=label)
    axes.axhline(result.chance, color="#777777", lw=1, ls="--", label=f"by chance: {result.chance:.2f}")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("MoE layer")
    axes.set_title("Share of a token's experts that are known before their layer", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result.name}  ·  {result.date[:10]}, {result.commit}", fontsize=9, color="#555555")
    save_picture(figure, path, 110)
