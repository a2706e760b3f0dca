"""Progress on standard error: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isnan, nan
from threading import current_thread, main_thread
from time import monotonic

SECONDS_BEFORE_FIRST_LINE, SECONDS_BETWEEN_LINES = 3.0, 5.0
"""A command that is done before the first line is due prints its last line alone."""


@dataclass(frozen=True)
class Progress:
    """The share of a command's work that is done.

    n_done, n_total: of the steps or cells that it counts; 0 and 0 if it counts none.
    seconds_left: an estimate; NaN before there is one.
    message: what was done last, or is being done.
    """

    n_done: int = 0
    n_total: int = 0
    seconds_left: float = nan
    message: str = ""

    @property
    def time_left(self) -> str:
        """`1:05 left`; empty at the end and before there is an estimate."""
        if isnan(self.seconds_left) or self.n_done == self.n_total > 0:
            return ""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        longer = f"{hours}:{minutes:02}" if hours else f"{minutes}"
        return f"{longer}:{seconds:02} left"


Listener = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """The listener that shows nothing."""


@contextmanager
def shown(count: str) -> Iterator[Listener]:
    """A listener that shows progress until the block ends.

    Args:
        count: the count's format, such as "{}/{} cells" for `n_done` and `n_total`.
    """
    # Only one bar may be on the screen at a time.
    if not sys.stderr.isatty() or current_thread() is not main_thread():
        yield _LinePrinter(count)
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.table import Column

    with bars.Progress(
        bars.SpinnerColumn(),
        bars.BarColumn(bar_width=20),
        bars.TextColumn("{task.fields[count]}", markup=False),
        bars.TextColumn("{task.fields[left]}", markup=False),
        bars.TextColumn(
            "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)
        ),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    ) as display:
        task = display.add_task("starting", total=None, count="", left="")

        def show(progress: Progress) -> None:
            display.update(
                task,
                total=progress.n_total or None,
                completed=progress.n_done,
                count=count.format(progress.n_done, progress.n_total),
                left=progress.time_left,
                description=progress.message,
            )

        yield show


class _LinePrinter:
    """Prints a line every few seconds, and one when the last step is done."""

    def __init__(self, count: str) -> None:
        self._count = count
        self._due = monotonic() + SECONDS_BEFORE_FIRST_LINE
        self._n_done = 0

    def __call__(self, progress: Progress) -> None:
        ends = self._n_done < progress.n_done == progress.n_total
        self._n_done = progress.n_done
        if monotonic() < self._due and not ends:
            return
        self._due = monotonic() + SECONDS_BETWEEN_LINES
        count = self._count.format(progress.n_done, progress.n_total)
        head = ", ".join(filter(None, [count, progress.time_left]))
        with suppress(OSError):  # a log on a full disk must not end the measurement
            print(f"{head}: {progress.message}", file=sys.stderr, flush=True)  # noqa: T201
