"""How a run is told: a progress bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class TerminalReporter:
    """Prints the progress of training to a console.

    Parameters
    ----------
    console
        Where to; a bar is drawn only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._cells = 0
        self._began = self._said = time.monotonic()
        self._epochs = 0
        self._title = ""

    def start(self, epochs: int, done: int, title: str = "training") -> None:
        """Training of that name begins, or goes on after ``done`` epochs."""
        self._title = "" if title == "training" else f"{title}: "
        self._epochs, self._cells = epochs, 0
        self._began = self._said = time.monotonic()
        if done:
            self.console.print(f"{self._title}resumed after {done} of {epochs} epochs")
        if self.console.is_terminal:
            columns = (
                TextColumn(f"{self._title}epoch {{task.completed}}/{{task.total}}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=epochs, completed=done)

    def step(self, cells: int) -> None:
        """Count the cells."""
        self._cells += cells

    def epoch(self, row: dict[str, float]) -> None:
        """One more epoch."""
        now = time.monotonic()
        speed = self._cells / max(now - self._began, 1e-9)
        words = f"loss {row['train_loss']:.1f}"
        if "validation_loss" in row:
            words += f", validation {row['validation_loss']:.1f}"
        if "weights_ess" in row:
            words += f", effective sample {row['weights_ess']:.0%}"
        words += f", {speed:,.0f} cells/s"
        if self._bar:
            self._bar.update(self._task, advance=1, description=words)
        elif now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            self.console.print(f"{self._title}epoch {int(row['epoch'])}/{self._epochs}: {words}", highlight=False)

    def stop(self, message: str) -> None:
        """Training is over."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._began
        self.console.print(f"{self._title}{message} ({seconds:.0f} s, {self._cells / max(seconds, 1e-9):,.0f} cells/s)", highlight=False)


@contextmanager
def counted(console: Console | None) -> Iterator[Callable[[str, int, int], None]]:
    """A function that tells which of so many pieces of work begins: a bar on a terminal, else a line every half minute; None is quiet."""
    if console is None:
        yield lambda what, number, total: None
        return
    began = said = time.monotonic()
    bar = Progress(
        TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"), console=console, transient=True
    )
    task = bar.add_task("", total=None) if console.is_terminal else None

    def tell(what: str, number: int, total: int) -> None:
        nonlocal said
        if task is not None:
            bar.update(task, completed=number - 1, total=total, description=what)
        elif time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            console.print(f"{number - 1} of {total} fits done after {said - began:.0f} s; now {what}", highlight=False)

    if task is not None:
        bar.start()
    try:
        yield tell
    finally:
        bar.stop()
