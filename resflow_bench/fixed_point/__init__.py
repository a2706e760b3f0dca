"""x = f(x) for a batch of examples, each with its own outcome and residual."""

from resflow_bench.fixed_point.newton import Newton, NewtonKrylov, direct
from resflow_bench.fixed_point.solution import BLOW_UP, Outcome, Solution
from resflow_bench.fixed_point.solve import solve
from resflow_bench.fixed_point.steps import Anderson, Auto, Picard, Secant, Step
from resflow_bench.fixed_point.windows import CHECK_EVERY, PATIENCE, UNASKED

__all__ = [
    "BLOW_UP",
    "CHECK_EVERY",
    "PATIENCE",
    "UNASKED",
    "Anderson",
    "Auto",
    "Newton",
    "NewtonKrylov",
    "Outcome",
    "Picard",
    "Secant",
    "Solution",
    "Step",
    "direct",
    "solve",
]
