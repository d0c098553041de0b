"""Perplexities, as a picture."""

from __future__ import annotations

from pathlib import Path

from pgmoe.bench.perplexity_result import TOTAL, PerplexityResult
from pgmoe.picture import new_figure, save_picture

COLOUR = "#1b6ca8"


def plot_perplexity(result: PerplexityResult, path: Path) -> None:
    """Draw a bar a model, of all text, to a PNG; ConfigError as pictures do."""
    names = list(result.models)
    values = [result.models[name][TOTAL] for name in names]
    figure = new_figure(8, 1.2 + 0.4 * len(names))
    axes = figure.subplots()
    axes.barh(range(len(names)), values, height=0.6, color=COLOUR)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.12)
    axes.set_xlabel(f"perplexity of {result.num_tokens[TOTAL]:,} tokens not trained on")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result.name}  ·  {result.date[:10]}, {result.commit}", fontsize=9, color="#555555")
    save_picture(figure, path, 110)
