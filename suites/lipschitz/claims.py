"""Claims about the Lipschitz constants: margins and statements."""

from __future__ import annotations

from resflow_bench.analysis.rules import Exactly
from resflow_bench.lab import Claims, Metric, Statement
from suites.margins import CERTIFIED, EXACT, each
from suites.models import FIRST, GLOSSARY

STATEMENTS = (
    Statement(
        "certified within promised",
        "the product of the layers' norms, by SVD in float64, is at most the promised K",
        "Lip(g) ≤ Π ‖W_j‖₂ Lip(φ_j)",
        Exactly("lipschitz_certified", "lipschitz_promised"),
    ),
    Statement(
        "realised within certified",
        "‖J(x)‖₂ at the points is no larger than the certified constant",
        "‖J(x)‖₂ ≤ Lip(g)",
        Exactly("lipschitz_realised", "lipschitz_certified"),
    ),
    Statement(
        "spectral radius within norm",
        "ρ(J(x)) ≤ ‖J(x)‖₂",
        "every eigenvalue is at most any operator norm",
        Exactly("spectral_radius", "lipschitz_realised"),
    ),
)

CLAIMS = Claims(
    metrics={
        **each(EXACT, "lipschitz_promised", "lipschitz_realised", "spectral_radius"),
        "lipschitz_certified": CERTIFIED,
        "lipschitz_power_iteration": Metric("more", rtol=1e-2),
    },
    statements=STATEMENTS,
    first=FIRST,
    glossary=GLOSSARY,
)
