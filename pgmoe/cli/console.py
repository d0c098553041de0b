"""What commands show while they work: on stderr, so that stdout holds results alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pgmoe.units import format_bytes

if TYPE_CHECKING:
    from pgmoe.training.step_figures import Step


@contextmanager
def bytes_bar(description: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Give a function (bytes done, bytes in all) that draws a bar with rate and time left.

    Until its first call the bar only shows that work goes on. Where `console` (stderr) is no terminal,
    there is a line at the start and one at the end instead.
    """
    console = console or Console(stderr=True)
    started, total_seen = time.monotonic(), 0
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )
    if not console.is_terminal:
        console.print(f"{description} ...", soft_wrap=True, highlight=False, markup=False)
    with bar:
        task = bar.add_task(description, total=None)

        def advance(done: int, total: int) -> None:
            nonlocal total_seen
            total_seen = total
            bar.update(task, completed=done, total=total)

        yield advance
    if not console.is_terminal:
        written = f"{format_bytes(total_seen)} in " if total_seen else ""
        line = f"{description}: {written}{time.monotonic() - started:.0f} s"
        console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def steps_bar(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (what is done now, steps done, steps in all) that draws a bar with the time so far.

    Where `console` (stderr) is no terminal, every step is a line instead.
    """
    console = console or Console(stderr=True)
    bar = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"{done}/{total} {what}", soft_wrap=True, highlight=False, markup=False)

        yield advance


@contextmanager
def training_bar(description: str, console: Console | None = None) -> Iterator[Callable[[Step], None]]:
    """Give a function that draws a bar with loss, learning rate, speed and time left.

    Where `console` (stderr) is no terminal, there is a line at the first step and then one every 30 seconds.
    """
    console = console or Console(stderr=True)
    told = -math.inf
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(description, total=None, figures="")

        def advance(step: Step) -> None:
            nonlocal told
            figures = (
                f"loss {step.loss:.4f}  rate {step.learning_rate:.2e}  {step.tokens_per_s:,.0f} tokens/s  "
                f"{timedelta(seconds=round(step.seconds_left))} left"
            )
            bar.update(task, completed=step.number, total=step.num_steps, figures=figures)
            if not console.is_terminal and (time.monotonic() - told > 30 or step.number == step.num_steps):
                told = time.monotonic()
                line = f"{step.number}/{step.num_steps}  {figures}"
                console.print(line, soft_wrap=True, highlight=False, markup=False)

        yield advance
