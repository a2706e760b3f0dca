"""Tables of the samples that the gate compares, from runs or from asv: a row per metric of a cell.

A table has the columns suite, cell, metric (empty where a cell has none), status, message, unit,
samples (`Samples`), paired (whether the i-th sample of two tables drew the same random numbers) and
version (of the benchmark; different versions are not compared).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.pooling import pool
from resflow_bench.lab.store import REPLICATES, axis_columns
from resflow_bench.speed.asv_results import Row

KEYS = ["suite", "cell", "metric"]
COLUMNS = [*KEYS, "status", "message", "unit", "samples", "paired", "version"]


@dataclass(frozen=True)
class Samples:
    """The samples of one metric of one cell.

    values: independent of each other, (n,); a single one where nothing is random.
    standard_error: of their mean, where it was recorded; NaN where it follows from the values.
    reach: half the recorded interval in recorded standard errors, 2.6 for 99 % of a normal mean;
        NaN where there is none.
    """

    values: np.ndarray
    standard_error: float = math.nan
    reach: float = math.nan

    @cached_property
    def mean(self) -> float:
        return float(self.values.mean())

    @cached_property
    def error(self) -> float:
        """The standard error of the mean."""
        if not math.isnan(self.standard_error):
            return self.standard_error
        n = len(self.values)
        if not math.isfinite(self.mean):
            return math.nan
        return float(self.values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0

    def same_as(self, other: Samples) -> bool:
        """Equal to the last bit, as common random numbers repeat it and no clock does."""
        return np.array_equal(self.values, other.values) and self.error == other.error

    @property
    def freedom(self) -> float:
        """Degrees of freedom behind `error`."""
        return len(self.values) - 1 if math.isnan(self.standard_error) else math.inf


def of_runs(runs: Iterable[Mapping[str, pd.DataFrame]], margins: Margins) -> pd.DataFrame:
    """The table of one or more runs of the same seed. Each run is one process.

    A time has one sample per run. Any other metric is taken from the first run that has it, since
    runs of one seed repeat each other. A cell that failed or was skipped in one of the runs counts
    as such.
    """
    return of_rows(pool([("", frames) for frames in runs], margins).frames, margins)


def of_rows(
    frames: Mapping[str, pd.DataFrame], margins: Margins, is_paired: bool = True
) -> pd.DataFrame:
    """The table of a run, or of several that are pooled.

    A row with replicates contributes those: the i-th was drawn from the same stream in every run
    of the same seed. A row without contributes its value and its standard error.

    Args:
        is_paired: whether the table is compared with one of the same seeds.
    """
    rows = [row for frame in frames.values() for row in _rows(frame, margins, is_paired)]
    return pd.DataFrame(rows, columns=COLUMNS)


def of_commits(
    base: Iterable[Row], new: Iterable[Row], margins: Margins, names_places: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of two commits, from the machines and environments where asv measured both.

    A tracked number was drawn from the same seeds in every commit. Cells name the machine and the
    environment where there are several, or if `names_places`.

    Raises:
        ValueError: no machine and environment has both.
    """
    both = [list(base), list(new)]
    places = [{row.where for row in rows} for rows in both]
    common = places[0] & places[1]
    if all(places) and not common:
        where = [", ".join(sorted(names)) for names in places]
        raise ValueError(
            f"BASE was measured in {where[0]}, and NEW in {where[1]}; measure both in one place."
        )
    names_places = names_places or len(common) > 1
    kept = ((row for row in rows if row.where in common or not all(places)) for rows in both)
    before, after = (_of_commit(rows, margins, names_places) for rows in kept)
    return before, after


def _of_commit(rows: Iterable[Row], margins: Margins, names_places: bool) -> pd.DataFrame:
    table = [
        (
            *(row.suite, row.cell + f" [{row.where}]" * names_places),
            row.metric if row.status == "ok" else "",
            *(row.status, row.message, row.unit),
            Samples(np.asarray(row.samples)),
            not margins.is_time(row.suite, row.metric),
            row.version,
        )
        for row in rows
    ]
    return pd.DataFrame(table, columns=COLUMNS)


def labels(frame: pd.DataFrame) -> pd.Series:
    """The name of each row's cell: `axis=value` for each of its axes."""
    first = frame.drop_duplicates("cell")
    axes = axis_columns(frame.columns)
    named = {
        row["cell"]: " ".join(f"{axis}={row[axis]}" for axis in axes if not pd.isna(row[axis]))
        for row in first[["cell", *axes]].to_dict(orient="records")
    }
    return frame["cell"].map(named)


def _rows(frame: pd.DataFrame, margins: Margins, is_paired: bool) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for row, label in zip(frame.to_dict(orient="records"), labels(frame), strict=True):
        replicates = row.get(REPLICATES)
        is_replicated = replicates is not None and len(replicates) > 0
        values = np.asarray(replicates if is_replicated else [row["value"]], dtype=float)
        is_time = margins.is_time(row["suite"], row["metric"])
        error = math.nan if is_replicated or is_time else row["standard_error"]
        scale = row["standard_error"] or math.nan
        reach = math.nan if is_time else (row["ci_high"] - row["ci_low"]) / 2 / scale
        rows.append(
            (row["suite"], label, row["metric"], row["status"], row["message"], row["unit"],
             Samples(values, error, reach), is_replicated and is_paired, "")
        )  # fmt: skip
    return rows
