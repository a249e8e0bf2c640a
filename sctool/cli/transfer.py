"""How a transfer is told: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

SECONDS_BETWEEN_LINES = 10.0


class TransferReporter:
    """Prints the progress of one file after another.

    Parameters
    ----------
    console
        Where to; a bar is drawn only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._name = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = self._said = 0.0
        self._first: int | None = None

    def start(self, name: str) -> None:
        """The next file."""
        self._name, self._first = name, None

    def __call__(self, done: int, total: int | None) -> None:
        """Bytes there are of bytes in all, where that is known."""
        now = time.monotonic()
        if self._first is None:  # of this transfer; what an earlier one left is no part of the rate
            self._first, self._began, self._said = done, now, now
            if self.console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self.console, transient=True)
                self._task = self._bar.add_task(self._name, total=total, completed=done)
                self._bar.start()
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._said > SECONDS_BETWEEN_LINES:
            from sctool.data.download.part import human

            self._said = now
            rate = max(done - self._first, 0) / (now - self._began)
            left = f" of {human(total)}, {(total - done) / rate:.0f} s left" if total and rate else ""
            self.console.print(f"{self._name}: {human(done)}{left}, {human(rate)}/s", highlight=False)

    def stop(self) -> None:
        """No more of this file."""
        if self._bar:
            self._bar.stop()
            self._bar = None
