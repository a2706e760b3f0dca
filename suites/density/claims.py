"""Claims about the learned density: margins and a statement."""

from __future__ import annotations

from resflow_bench.analysis.rules import AtLeast
from resflow_bench.lab import Claims, Metric, Statement
from suites.margins import BITS_PER_DIM, CERTIFIED, EXACT, REALISED

STATEMENTS = (
    Statement(
        "no better than the truth",
        "E[ln p_true(x) − ln p(x)] ≥ 0 over x from the true density",
        "Gibbs' inequality: a Kullback–Leibler divergence is at least 0",
        AtLeast("divergence", 0.0),
    ),
)

CLAIMS = Claims(
    metrics={
        "log_prob": Metric("less", atol=0.05),
        "divergence": Metric("more", atol=0.05),
        "bits_per_dim": BITS_PER_DIM,
        "log_prob_true": EXACT,
        "lipschitz_certified": CERTIFIED,
        **REALISED,
    },
    statements=STATEMENTS,
)
