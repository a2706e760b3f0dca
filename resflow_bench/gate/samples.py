"""What the gate compares, from runs of ours or from asv's results: one row a metric of a cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from resflow_bench.gate.judge import Samples
from resflow_bench.gate.metrics import METRICS
from resflow_bench.lab.store import REPLICATES, axis_columns
from resflow_bench.speed.asv_results import Row

COLUMNS = [
    "suite", "cell", "metric", "status", "message", "unit", "samples", "paired", "version",
]  # fmt: skip


STATUSES = ["ok", "skipped", "failed"]
"""From good to bad."""


def side_of_runs(runs: Iterable[Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Of one run or more of the same cells. Each is one process: one sample of every time.

    A row with replicates brings those, of which the i-th drew from the same stream in every run
    with the same seed. One without brings its value and its standard error. What is no time is
    taken from the first run that has it, since runs with one seed repeat each other. A cell that
    failed, or was skipped, in one of them did so.
    """
    rows = [row for frames in runs for frame in frames.values() for row in _rows(frame)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    cells = [table["suite"], table["cell"]]
    worst = table["status"].map(STATUSES.index).groupby(cells).transform("max")
    table = table[table["status"].map(STATUSES.index) == worst]
    groups = table.groupby(["suite", "cell", "metric"], sort=False, as_index=False)
    return groups.agg(
        dict.fromkeys(("status", "message", "unit"), "first")
        | {"samples": _joined, "paired": "first", "version": "first"}
    )[COLUMNS]


def sides_of_asv(
    base: Iterable[Row], new: Iterable[Row], says_where: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of two commits, where both were measured on the same machines, in the same environments.

    A cell says where if there are several such places, or if it is to. What is tracked was drawn
    from the same seeds in every commit.

    Raises:
        ValueError: no place has both.
    """
    rows = [list(base), list(new)]
    places = [{row.where for row in side} for side in rows]
    common = places[0] & places[1]
    if all(places) and not common:
        found = [", ".join(sorted(names)) for names in places]
        raise ValueError(
            f"BASE was measured in {found[0]}, and NEW in {found[1]}; measure both in one place."
        )
    before, after = (
        _side_of_asv(
            (row for row in side if row.where in common or not all(places)),
            says_where or len(common) > 1,
        )
        for side in rows
    )
    return before, after


def _side_of_asv(rows: Iterable[Row], says_where: bool) -> pd.DataFrame:
    table = [
        (
            *(row.suite, row.cell + f" [{row.where}]" * says_where),
            row.metric if row.status == "ok" else "",
            *(row.status, row.message, row.unit),
            Samples(np.asarray(row.samples)),
            not _is_time(row.metric),
            row.version,
        )
        for row in rows
    ]
    return pd.DataFrame(table, columns=COLUMNS)


def _rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    axes = axis_columns(frame.columns)
    found: list[tuple[object, ...]] = []
    for row in frame.to_dict(orient="records"):
        label = " ".join(f"{axis}={row[axis]}" for axis in axes if not pd.isna(row[axis]))
        replicates = row.get(REPLICATES)
        is_replicated = replicates is not None and len(replicates) > 0
        values = np.asarray(replicates if is_replicated else [row["value"]], dtype=float)
        error = math.nan if is_replicated or _is_time(row["metric"]) else row["standard_error"]
        samples = Samples(values, error)
        found.append(
            (row["suite"], label, row["metric"], row["status"], row["message"], row["unit"],
             samples, is_replicated, "")
        )  # fmt: skip
    return found


def _joined(samples: pd.Series) -> Samples:
    """Of times, those of every run; of anything else the first."""
    first: Samples = samples.iloc[0]
    if len(samples) == 1 or len(first.values) > 1 or not math.isnan(first.standard_error):
        return first
    return Samples(np.concatenate([one.values for one in samples]))


def _is_time(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].is_time
