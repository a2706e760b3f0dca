"""Banach's count of steps is a statement about tolerances above the rounding floor u / (1 - K)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from resflow_bench.lab import Cell, Context
from suites.inverse.claims import COUNTABLE, NEAR_ONE, REACHABLE
from suites.inverse.measure import measure_inverse


@pytest.mark.parametrize(
    ("dtype", "lipschitz", "tolerance", "reachable", "countable"),
    [
        ("float32", 0.99, 1e-6, False, False),  # stagnated: 6e-6 is the floor
        ("float32", 0.99, 1e-5, True, False),  # took 1,215 steps, one in a hundred above the count
        ("float32", 0.99, 1e-4, True, True),
        ("float32", 0.5, 1e-6, True, False),
        ("float64", 0.99, 1e-9, True, True),
        ("float64", 0.99, 1e-15, False, False),
    ],
)
def test_only_tolerances_above_the_floor_are_judged(
    dtype, lipschitz, tolerance, reachable, countable
) -> None:
    cell = {"dtype": dtype, "lipschitz": lipschitz, "tolerance": tolerance}
    cells = pd.DataFrame([cell | {"n_steps_bound": 900.0, "max_steps": 5000}])
    assert bool(len(cells.query(REACHABLE))) == reachable
    assert bool(len(cells.query(COUNTABLE))) == countable


@pytest.mark.parametrize("model", ["minus-identity", "orthogonal", "steep"])
def test_a_requested_error_is_certified_in_few_evaluations(model: str, tmp_path: Path) -> None:
    seen = certified(tmp_path, model=model, error=1e-6)
    assert seen["uncertified_share"] == 0.0
    assert seen["inverse_error"] <= seen["inverse_error_bound"] <= 2e-6
    assert 3 < seen["n_evaluations"] <= 100


def test_an_error_below_rounding_is_refused(tmp_path: Path) -> None:
    seen = certified(tmp_path, model="minus-identity", error=1e-15)
    assert seen["uncertified_share"] == 1.0
    assert seen["outcome"] == 4
    assert seen["error_over_bound"] <= 1.0


@pytest.mark.parametrize(
    ("model", "error", "lipschitz", "promised"),
    [
        ("steep", 1e-6, 0.9999, True),
        ("steep", 1e-9, 0.9999, False),
        ("steep", 1e-6, 0.99999, False),
        ("mine.py:flow", 1e-6, 0.9, False),
    ],
)
def test_certificates_are_promised_of_some_cells(model, error, lipschitz, promised) -> None:
    cell = {"model": model, "error": error, "lipschitz": lipschitz, "dim": 64, "dtype": "float64"}
    assert bool(len(pd.DataFrame([cell]).query(NEAR_ONE))) == promised


def certified(results: Path, **axes) -> dict[str, float]:
    """Metric -> value of a cell with K = 0.999."""
    common = {"dim": 16, "lipschitz": 0.999, "dtype": "float64", "device": "cpu"}
    context = Context(seed=0, effort={"n_points": 8}, results=results)
    return {o.metric: o.value for o in measure_inverse(Cell("inverse", common | axes), context)}
