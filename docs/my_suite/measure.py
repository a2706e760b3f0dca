"""The error of a truncated series."""

from math import log1p

from resflow_bench.lab import exactly


def measure_tail(cell, context):
    """|sum_{k<=N} (-1)^(k+1) K^k/k - ln(1 + K)| and its bound K^(N+1)/(N+1)."""
    k, n = cell["lipschitz"], cell["n_terms"]
    terms = (-((-k) ** j) / j for j in range(1, n + 1))
    yield exactly("error", abs(sum(terms) - log1p(k)), "nat")
    yield exactly("error_bound", k ** (n + 1) / (n + 1), "nat")
