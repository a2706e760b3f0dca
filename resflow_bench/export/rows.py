"""Rows to export, as they are, as single measurements, or as one wide table for each suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.rules import worth_showing
from resflow_bench.analysis.tables import (
    axes,
    heading,
    in_order,
    main_metrics,
    plain,
    units,
    varying,
    wide,
)
from resflow_bench.gate.samples import labels
from resflow_bench.lab import Suite


@dataclass(frozen=True)
class ExportedRows:
    """The rows of some runs.

    frames: suite to its rows.
    suites: name to suite, of those that can be loaded.
    runs: the names of the runs.
    """

    frames: Mapping[str, pd.DataFrame]
    suites: Mapping[str, Suite]
    runs: tuple[str, ...]

    def measurements(self) -> Iterator[Measurement]:
        """Every metric of every cell that was measured."""
        margins = Margins.of_suites(self.suites)
        for suite, frame in self.frames.items():
            measured = frame[frame["status"] == "ok"]
            metrics = {name: margins.of(suite, name) for name in measured["metric"].unique()}
            for cell, row in zip(labels(measured), measured.itertuples(), strict=True):
                margin = metrics[row.metric]
                yield Measurement(
                    *(suite, cell, row.metric, row.unit, row.value, row.ci_low, row.ci_high),
                    *(row.n, None if margin is None else margin.worse),
                )

    def table(self, suite: str, words: Callable[[float, float, float], str]) -> pd.DataFrame:
        """The finished cells of a suite in words: the axes that vary, then its main metrics.

        Args:
            words: from a value and its limits, which are NaN where no interval is worth showing,
                to text.
        """
        frame, known = self.frames[suite], self.suites.get(suite)
        cells = in_order(wide(frame), known.claims.first if known else "")
        unit = units(frame)
        chosen = main_metrics(known.table if known else (), unit)
        shown = varying(cells, axes(frame))
        columns = {axis: cells[axis].map(plain) for axis in shown}
        for metric in chosen:
            ends = (cells[f"{metric}{end}"] for end in ("", "_low", "_high"))
            texts = [words(*worth_showing(*three)) for three in zip(*ends, strict=True)]
            columns[heading(metric, unit[metric])] = pd.Series(texts, cells.index, dtype=object)
        return pd.DataFrame(columns).rename_axis(columns=str(len(shown)))


class Measurement(NamedTuple):
    """One metric of one cell.

    cell: all its axes, as `axis=value`, so that its name is the same in every run.
    low, high: of its 99 % interval; NaN where there is none.
    worse: "more", "less" or "other", as the suite declares it; None where it does not.
    """

    suite: str
    cell: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    n: int
    worse: str | None

    @property
    def name(self) -> str:
        return f"{self.suite} {self.cell}"
