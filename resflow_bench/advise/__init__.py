"""Advice: the estimator that reaches a requested error on a flow in the least time."""

from resflow_bench.advise.advice import Advice, advise, error_of
from resflow_bench.advise.contest import Measured

__all__ = ["Advice", "Measured", "advise", "error_of"]
