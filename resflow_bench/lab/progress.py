"""A sweep as it goes, on standard error: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from math import isnan
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resflow_bench.lab.sweep import Listener, Tally

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress() -> Iterator[Listener]:
    """A listener for `sweep`, for as long as the sweep lasts."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with bar(20, "starting") as show:
        yield lambda tally, message: show(tally.n_done, tally.n_total, _left(tally), message)


@contextmanager
def bar(width: int, doing: str) -> Iterator[Callable[[int, int, str, str], None]]:
    """A bar in the terminal; what comes is told (how many are done, of how many, left, doing)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    with Progress(
        SpinnerColumn(),
        BarColumn(bar_width=width),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    ) as shown:
        task = shown.add_task(doing, total=None, left="")

        def show(n_done: int, n_total: int, left: str, doing: str) -> None:
            shown.update(task, description=doing, total=n_total, completed=n_done, left=left)

        yield show


class _Lines:
    """A line every few seconds, and one at the last cell."""

    def __init__(self) -> None:
        self._said = monotonic()

    def __call__(self, tally: Tally, message: str) -> None:
        if monotonic() - self._said < SECONDS_BETWEEN_LINES and tally.n_done < tally.n_total:
            return
        self._said = monotonic()
        left = f", {left}" if (left := _left(tally)) else ""
        line = f"{tally.n_done}/{tally.n_total} cells{left}: {message}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def _left(tally: Tally) -> str:
    """`2 failed, 1:05 left`, what there is of it."""
    parts = [f"{len(tally.failed)} failed"] if tally.failed else []
    if not isnan(seconds := tally.seconds_left) and tally.n_done < tally.n_total:
        minutes, rest = divmod(round(seconds), 60)
        parts.append(f"{minutes}:{rest:02} left")
    return ", ".join(parts)
