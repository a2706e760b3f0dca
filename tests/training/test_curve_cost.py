"""The cost of a validation curve by difference, in the suite `training_gap`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import SUITES, rows

from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.verdicts import judge
from resflow_bench.lab import Cell, Context, Observation
from resflow_bench.training import ValidationCurve
from suites.training_gap import curve
from suites.training_gap.measure import gap_recipe

FLOW = {"dataset": "checkerboard", "architecture": "mlp", "lipschitz": 0.9, "step": 12}
ROULETTE = {"truncation": "roulette", "roulette": "geometric(0.3)", "n_exact": 4}
CELL = Cell(
    "training_gap",
    {**FLOW, **ROULETTE, "probe": "rademacher", "n_probes": 1, "dtype": "float64", "device": "cpu"},
)
N_TIMES = 12


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def cost(results: Path, monkeypatch: pytest.MonkeyPatch) -> Observation:
    monkeypatch.setattr(curve, "BURN_IN", 20)
    effort = {"n_points": 8, "n_copies": 8, "n_times": N_TIMES}
    (found,) = curve.measure_curve(gap_recipe(CELL), CELL, Context(0, effort, results))
    return found


def test_a_curve_by_difference_costs_less_and_fresh_draws_do_not(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """99 % intervals of eight curves; four fresh draws at eight calls a point cost 4.1 draws'."""
    found = cost(results, monkeypatch)
    assert found.n == 8
    assert 0 < found.ci_low <= found.value <= found.ci_high < 0.5

    def fresh(self: ValidationCurve, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.float64)

    monkeypatch.setattr(ValidationCurve, "_weights", fresh)
    twin = cost(results, monkeypatch)
    n_calls = curve.N_FIRST + (N_TIMES - 1) * 2 * curve.N_DRAWS
    errors = (1 / curve.N_FIRST + (N_TIMES - 1) / curve.N_DRAWS) / N_TIMES
    assert twin.ci_low < n_calls * errors / N_TIMES < twin.ci_high
    assert twin.ci_low > 1


def test_the_interval_of_a_ratio_covers() -> None:
    """99 % intervals for E above / E below = 2, from 16 dependent pairs: 2,000 of them."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        below = rng.gamma(10.0, size=16)
        found = curve.ratio(below + rng.gamma(10.0, size=16), below)
        held += found.low <= 2.0 <= found.high
    assert 0.98 < held / 2000 < 0.997  # binomial: 0.99 +- 0.0057 at 99 %, and the linearisation


def test_a_curve_s_cost_is_judged_and_told() -> None:
    cells = [
        (FLOW | ROULETTE | {"step": step}, {"curve_cost": (0.04 * step, 0.002)}) for step in (1, 9)
    ]
    frame = rows("training_gap", iter(cells))
    judged = judge({"training_gap": frame}, SUITES)
    assert judged["verdict"].tolist() == ["holds", "violated"]
    (said,) = findings({"training_gap": frame}, SUITES)
    assert "0.36" in said
    assert "of the products of independent draws" in said
