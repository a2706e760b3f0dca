"""Promised, certified and realised Lipschitz constants."""

from __future__ import annotations

from collections.abc import Iterable

from resflow_bench.lab import Cell, Context, Observation, exactly
from resflow_bench.models import build_flow, build_problem
from suites.trained import largest_certified


def measure_lipschitz(cell: Cell, context: Context) -> Iterable[Observation]:
    """Promised, certified and realised constants of the worst block.

    Of a flow without a promise the realised ones alone.
    """
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    if problem.is_promised:
        unaligned = build_flow(cell, context.results, aligned=False)
        yield exactly("lipschitz_promised", cell["lipschitz"], "1")
        yield exactly("lipschitz_certified", largest_certified(problem.flow), "1")
        yield exactly("lipschitz_power_iteration", largest_certified(unaligned), "1")
    yield exactly("lipschitz_realised", problem.norm, "1")
    yield exactly("spectral_radius", problem.spectral_radius, "1")
