"""Claims about the Lipschitz constants: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import Exactly
from resflow_bench.analysis.words import measured, number, plural, share, span
from resflow_bench.lab import Claims, Finding, Metric, Statement
from suites.margins import CERTIFIED, EXACT, each
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

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


def reached(cells: pd.DataFrame) -> str:
    """The largest norm at the points, beside the certified and the promised constant."""
    needed = ("lipschitz_promised", "lipschitz_certified", "lipschitz_realised", "spectral_radius")
    cells = measured(cells, *needed)
    cells = cells[cells["lipschitz_promised"] > 0]
    if cells.empty:
        return ""
    c = telling(cells).iloc[0]
    part = share(c["lipschitz_realised"] / c["lipschitz_promised"], "the promised constant")
    parts = cells["lipschitz_realised"] / cells["lipschitz_promised"]
    return (
        f"At K = {c['lipschitz']:g} the norm of the Jacobian of {named(c)} reaches {part}. It is "
        f"{number(c['lipschitz_realised'])} in the worst block; {number(c['lipschitz_certified'])} "
        f"is certified, and the largest spectral radius is {number(c['spectral_radius'])}. Over "
        f"{plural(len(cells), 'cell')} the ratio of reached to promised is {span(parts)}."
    )


CLAIMS = Claims(
    metrics={
        **each(EXACT, "lipschitz_promised", "lipschitz_realised", "spectral_radius"),
        "lipschitz_certified": CERTIFIED,
        "lipschitz_power_iteration": Metric("more", rtol=1e-2),
    },
    statements=STATEMENTS,
    findings=(Finding(65, reached),),
    first=FIRST,
    glossary=GLOSSARY,
)
