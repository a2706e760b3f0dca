"""Banach's count of steps is a statement about tolerances above the rounding floor u / (1 - K)."""

from __future__ import annotations

import pandas as pd
import pytest

from suites.inverse.claims import COUNTABLE, REACHABLE


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
