"""A prediction as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.engine.roofline import Prediction, TokenCost
from pgmoe.picture import new_figure, save_picture

if TYPE_CHECKING:
    from pgmoe.cli.plan_report import Row


def draw(title: str, rows: Sequence[Row], line: Sequence[Prediction], cost: TokenCost, path: Path) -> None:
    """Draw tokens/s over the share of experts on the device. Raises ConfigError as pictures do."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    axes.plot(
        [100 * p.num_slots / cost.num_experts for p in line],
        [p.tokens_per_s for p in line],
        color="#2a6f97",
        label=f"the slower of both; link {cost.bandwidth / 1e9:.2f} GB/s",
    )
    axes.axhline(1 / cost.compute_s, color="#a9adb3", linestyle="--", label="compute, all experts resident")
    for row in rows:
        share = 100 * row.slots / cost.num_experts
        axes.plot(share, row.tokens_per_s, "o", color="#2a6f97")
        note = f"{row.budget}\n{row.device_bytes / 1e9:.2f} GB"
        above = row.budget.endswith("%")  # one's own budget may lie close beside one of these
        axes.annotate(
            note,
            (share, row.tokens_per_s),
            textcoords="offset points",
            xytext=(-4, 8) if above else (6, -22),
            ha="right" if above else "left",
            fontsize=8,
        )
    axes.set_xlabel("experts on the device, %")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(0, 1.25 / cost.compute_s)
    axes.set_xlim(0, 105)
    axes.set_title(title, fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    save_picture(figure, path, 120)
