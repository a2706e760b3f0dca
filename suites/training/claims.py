"""Claims about a training's log: margins and a statement."""

from __future__ import annotations

from resflow_bench.analysis.rules import Exactly
from resflow_bench.lab import Claims, Statement
from suites.margins import BITS_PER_DIM, CERTIFIED, RATE

STATEMENTS = (
    Statement(
        "promise kept while training",
        "after every update, no block's certified constant is above the promise",
        "the certificate that ends each update",
        Exactly("lipschitz_certified", "lipschitz"),
    ),
)

CLAIMS = Claims(
    metrics={
        "bits_per_dim": BITS_PER_DIM,
        "lipschitz_certified": CERTIFIED,
        "examples_per_s": RATE,
    },
    statements=STATEMENTS,
)
