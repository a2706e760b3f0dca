"""The margin of the error, and the theorem that it is held to."""

from resflow_bench.analysis.rules import Exactly
from resflow_bench.lab import Claims, Metric, Statement

CLAIMS = Claims(
    metrics={"error": Metric("more", rtol=0.01)},
    statements=(
        Statement(
            "error within the next term",
            "an alternating series is off by no more than its next term",
            "Leibniz's criterion",
            Exactly("error", "error_bound"),
        ),
    ),
)
