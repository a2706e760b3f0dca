"""What a suite shows on the page: its pictures, each with its caption, and its table's metrics."""

from __future__ import annotations

from dataclasses import dataclass

from resflow_bench.report.look import Draw


@dataclass(frozen=True)
class Picture:
    """A figure and the sentences that say how to read it."""

    name: str
    draw: Draw
    caption: str


@dataclass(frozen=True)
class Section:
    """One suite: what it draws, and the metrics of its table (none named: all of them)."""

    suite: str
    pictures: tuple[Picture, ...] = ()
    metrics: tuple[str, ...] = ()
