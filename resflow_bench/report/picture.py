"""A figure of the page, as a suite declares it."""

from __future__ import annotations

from dataclasses import dataclass

from resflow_bench.report.style import Draw


@dataclass(frozen=True)
class Picture:
    """A figure, and a caption that explains it.

    name: of the figure's file, unique on the page.
    draw: from cells (`analysis.tables.wide`) and a number of columns to a figure as many panels
        wide; to None where there is nothing to draw. Its docstring is the figure's alt text.
    caption: in which ``{hardware}`` stands for the names of the devices of the runs.
    """

    name: str
    draw: Draw
    caption: str
