"""The log of a training, written by `resflow-bench train`: likelihood, loss and constants."""

from __future__ import annotations

from dataclasses import replace

from resflow_bench.training.plan import TRAINING
from suites.training.claims import CLAIMS

SUITE = replace(
    TRAINING,
    claims=CLAIMS,
    table=(
        *("loss", "log_prob_test", "bits_per_dim", "lipschitz_certified", "lipschitz_excess"),
        *("learning_rate", "examples_per_s"),
    ),
    figures="suites.training.figures",
)
