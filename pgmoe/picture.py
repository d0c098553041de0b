"""Figures that become files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgmoe.errors import ConfigError
from pgmoe.new_file import check_new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_picture(path: Path) -> None:
    """Raise ConfigError unless a figure can be drawn and written to `path`, as far as can be told before."""
    new_figure(1, 1)
    check_new_file(path)
    kinds = _kinds()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(f"cannot write {path}: a picture's name ends in .{', .'.join(sorted(kinds))}")


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib; pip install 'pgmoe[bench]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_picture(figure: Figure, path: Path, dpi: int) -> None:
    """Write it; the name's ending says as what. Raises ConfigError if that cannot be."""
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the picture {path}: {error}") from error


def _kinds() -> set[str]:
    from matplotlib.backend_bases import FigureCanvasBase

    return set(FigureCanvasBase.get_supported_filetypes())
