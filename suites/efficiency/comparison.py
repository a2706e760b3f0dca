"""The candidates of `efficiency`: their names, and the seconds that each takes to an error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resflow_bench.theory import seconds_to_target

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "baseline"
ROUNDING = 1e-6  # nat, the least difference that float32 resolves


def compared(cells: pd.DataFrame) -> pd.DataFrame:
    """The finished cells at their model's largest K, with the columns for their comparison.

    name: of the candidate, by `name_of`.
    finite: whether the variance is.
    spread: the variance of a draw (nat^2), from the closed form where there is one.
    floor: |bias| (nat) from its formula; where there is none, the farther end of its interval.
    seconds: per example: a call's time over that of ten plain terms timed in turns, times the
        median seconds of these terms, so that a disturbance of the machine is in both.
    """
    needed = ("variance", "bias", "variance_is_finite", "seconds_per_example", "relative_time")
    if not {"implementation", *needed} <= set(cells):
        return cells.head(0)
    cells = cells[cells["status"] == "ok"].dropna(subset=["implementation", *needed])
    timed = cells[["seconds_per_example", "relative_time"]]
    cells = cells[(np.isfinite(timed) & (timed > 0)).all(axis=1)]
    if cells.empty:
        return cells
    largest = cells.groupby("model")["lipschitz"].transform("max")
    cells = cells[cells["lipschitz"] == largest]
    yardstick = cells["seconds_per_example"] / cells["relative_time"]
    unit = yardstick.groupby([cells["model"], cells["dim"]]).transform("median")
    measured = cells[["bias_low", "bias_high"]].abs().max(axis=1)
    measured = measured.where(np.isfinite(measured), cells["bias"].abs())
    closed = column(cells, "variance_expected")
    return cells.assign(
        name=[name_of(cell) for _, cell in cells.iterrows()],
        finite=cells["variance_is_finite"] == 1,
        spread=closed.where(np.isfinite(closed), cells["variance"]),
        floor=column(cells, "bias_expected").abs().fillna(measured).clip(lower=ROUNDING),
        seconds=cells["relative_time"] * unit,
    )


GRADIENT = {
    "gradient_variance": "variance",
    "gradient_bias": "bias",
    "gradient_seconds": "seconds_per_example",
    "gradient_relative_time": "relative_time",
}
"""The metrics of the gradient, and those of the value that they correspond to."""


def of_gradient(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with the gradient's metrics in the place of the value's; none has a closed form."""
    ends = ("", "_low", "_high", "_n", "_se")
    renamed = {f"{mine}{end}": f"{its}{end}" for mine, its in GRADIENT.items() for end in ends}
    of_value = [*renamed.values(), "variance_expected", "bias_expected"]
    return cells.drop(columns=of_value, errors="ignore").rename(columns=renamed)


def seconds_to(cells: pd.DataFrame, errors: np.ndarray) -> np.ndarray:
    """Seconds per example that averaged draws of each cell take to errors (n,) nat: (cells, n)."""
    spread, floor, seconds = (
        cells[c].to_numpy(float)[:, None] for c in ("spread", "floor", "seconds")
    )
    variance = np.where(cells["finite"].to_numpy(bool)[:, None], spread, math.inf)
    return seconds_to_target(seconds, variance, floor, errors)


def reference(cells: pd.DataFrame) -> pd.Series | None:
    """The draw that normflows trains by; else our baseline; None if neither was measured.

    Of a gradient that is its memory-saving mode, which has no row of a value.
    """
    for mode in ("memory-saving", "roulette"):
        theirs = (cells["implementation"] == "normflows") & (column(cells, "mode") == mode)
        if theirs.any():
            return cells[theirs].iloc[0]
    ours = cells[cells["name"] == BASELINE]
    return ours.iloc[0] if len(ours) else None


def name_of(cell: Mapping[Any, Any]) -> str:
    """A candidate in few words: its differences from the baseline.

    >>> name_of({"implementation": "ours", "estimator": "determinant"})
    'determinant'
    """
    if cell["implementation"] != "ours":
        version = re.match(r"\w+ \d[^\s;]*", cell.get("message", ""))
        mode = "training" if cell["mode"] == "roulette" else cell["mode"]
        return f"{version[0] if version else cell['implementation']}, {mode}"
    if cell["estimator"] == "determinant":
        return "determinant"
    words = {
        **{"taylor": "", "taylor(bfloat16)": "bfloat16"},
        **{"controlled": "control", "circulant": "circulant control"},
    }
    expansion = words.get(cell["expansion"], str(cell["expansion"]).capitalize())
    probe, n = cell["probe"].capitalize(), int(cell["n_traced"])
    if cell["estimator"] == "tuned":
        return _joined("tuned", probe, expansion)
    traces = f"{n} trace{'s' * (n > 1)}" if n else ""
    if cell["estimator"] == "xtrace":
        return _joined("XTrace", traces)
    if cell["truncation"] == "fixed":
        return _joined(f"{int(cell['n_terms'])} terms", traces, expansion)
    m = int(cell["n_probes"])
    probe = f"{m} {probe}" if m > 1 else probe
    changed = [
        "" if cell["probe"] == "gaussian" and m == 1 else probe,
        "" if cell["roulette"] == "geometric(0.5)" else cell["roulette"],
        {"batch": "", "example": "per example"}.get(cell["per"], cell["per"]),
        traces,
    ]
    if all(changed):
        return _joined("all together", probe if m > 1 else "", expansion)
    return _joined(*changed, expansion) or BASELINE


def column(cells: pd.DataFrame, name: str) -> pd.Series:
    """The column, all NaN if the cells have none."""
    return cells[name] if name in cells else cells.assign(**{name: math.nan})[name]


def _joined(*words: str) -> str:
    return ", ".join(word for word in words if word)
