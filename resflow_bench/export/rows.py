"""Rows to export, as they are, as single measurements, or as one wide table for each suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.rules import ROUNDING
from resflow_bench.analysis.tables import axes, plain, units, varying, wide
from resflow_bench.files import written_whole
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
        cells = wide(frame)
        cells = cells[cells["status"] == "ok"]
        if known is not None and known.claims.first:
            first = cells.query(known.claims.first)
            cells = pd.concat([first, cells.drop(first.index)])
        unit = units(frame)
        chosen = [m for m in (() if known is None else known.table) if m in unit] or list(unit)
        shown = varying(cells, axes(frame))
        columns = {axis: cells[axis].map(plain) for axis in shown}
        for metric in chosen:
            ends = (cells[f"{metric}{end}"] for end in ("", "_low", "_high"))
            name = metric if unit[metric] in ("", "1", metric) else f"{metric} ({unit[metric]})"
            columns[name] = pd.Series([words(*_worth(*three)) for three in zip(*ends, strict=True)],
                                      cells.index, dtype=object)  # fmt: skip
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


def write_text(file: Path, text: str) -> Path:
    """Write the file whole, in UTF-8."""
    with written_whole(file) as stream:
        stream.write(text.encode(errors="backslashreplace"))
    return file


def _worth(value: float, low: float, high: float) -> tuple[float, float, float]:
    """The three numbers, without limits that are no wider than rounding."""
    is_rounding = high - low <= 2 * ROUNDING * abs(value)
    return (value, float("nan"), float("nan")) if is_rounding else (value, low, high)
