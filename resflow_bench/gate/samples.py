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

from resflow_bench.gate.margins import Margins
from resflow_bench.lab.store import REPLICATES, axis_columns
from resflow_bench.speed.asv_results import Row

KEYS = ["suite", "cell", "metric"]
COLUMNS = [*KEYS, "status", "message", "unit", "samples", "paired", "version"]

STATUSES = ["ok", "skipped", "failed"]  # of a cell, from best to worst


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
    """The table of one or more runs of the same cells. Each run is one process.

    A row with replicates contributes those: the i-th was drawn from the same stream in every run
    of the same seed. A row without contributes its value and its standard error. A time has one
    sample per run. Any other metric is taken from the first run that has it, since runs of one seed
    repeat each other. A cell that failed or was skipped in one of the runs counts as such.
    """
    rows = [row for frames in runs for frame in frames.values() for row in _rows(frame, margins)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    cells = [table["suite"], table["cell"]]
    worst = table["status"].map(STATUSES.index).groupby(cells).transform("max")
    table = table[table["status"].map(STATUSES.index) == worst]
    several: dict[tuple[str, str, str], list[Samples]] = {}
    for *key, samples in table[[*KEYS, "samples"]].itertuples(index=False):
        several.setdefault(tuple(key), []).append(samples)
    first = table.drop_duplicates(KEYS).reset_index(drop=True)
    return first.assign(samples=[_joined(samples) for samples in several.values()])


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


def _rows(frame: pd.DataFrame, margins: Margins) -> list[tuple[object, ...]]:
    axes = axis_columns(frame.columns)
    rows: list[tuple[object, ...]] = []
    for row in frame.to_dict(orient="records"):
        label = " ".join(f"{axis}={row[axis]}" for axis in axes if not pd.isna(row[axis]))
        replicates = row.get(REPLICATES)
        is_replicated = replicates is not None and len(replicates) > 0
        values = np.asarray(replicates if is_replicated else [row["value"]], dtype=float)
        is_time = margins.is_time(row["suite"], row["metric"])
        error = math.nan if is_replicated or is_time else row["standard_error"]
        scale = row["standard_error"] or math.nan
        reach = math.nan if is_time else (row["ci_high"] - row["ci_low"]) / 2 / scale
        rows.append(
            (row["suite"], label, row["metric"], row["status"], row["message"], row["unit"],
             Samples(values, error, reach), is_replicated, "")
        )  # fmt: skip
    return rows


def _joined(samples: list[Samples]) -> Samples:
    """The samples of all runs if the metric is a time, else those of the first run."""
    first = samples[0]
    if len(samples) == 1 or len(first.values) > 1 or not math.isnan(first.standard_error):
        return first
    return Samples(np.concatenate([one.values for one in samples]))
