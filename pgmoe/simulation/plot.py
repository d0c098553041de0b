"""A simulation as a picture: misses by budget, a line for each policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgmoe.picture import new_figure, save_picture
from pgmoe.simulation.report import BELADY, Simulation


def plot(simulation: Simulation, path: Path) -> None:
    """Draw misses and seconds to a PNG. Raises ConfigError as pictures do."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    lines = sorted({(o.policy, o.pools) for o in simulation.outcomes})
    for policy, pools in lines:
        points = [o for o in simulation.outcomes if (o.policy, o.pools) == (policy, pools)]
        axes.plot(
            [100 * o.share for o in points],
            [o.misses / simulation.num_steps for o in points],
            marker="o",
            markersize=3,
            linestyle="-" if pools == "global" else ":",
            color="#222222" if policy == BELADY else None,
            label=policy if pools == "global" else f"{policy}, {pools}",
        )
    axes.set_xlabel("slots (% of all experts)")
    axes.set_ylabel("misses per forward pass")
    axes.set_ylim(bottom=0)
    read_ms = 1e3 * simulation.expert_bytes / simulation.bandwidth
    seconds = axes.secondary_yaxis("right", functions=(_times(read_ms), _times(1 / read_ms)))
    seconds.set_ylabel(f"at least so many ms at {simulation.bandwidth / 1e9:g} GB/s")
    axes.legend(fontsize=8, frameon=False)
    axes.spines["top"].set_visible(False)
    axes.set_title(f"{simulation.model}: {simulation.num_steps} forward passes", fontsize=10)
    save_picture(figure, path, 110)


def _times(factor: float) -> Callable[[Any], Any]:
    """A function that multiplies what matplotlib gives it."""
    return lambda value: value * factor
