"""Claims about the speed: margins, a statement, a finding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtMost
from resflow_bench.analysis.words import interval, measured
from resflow_bench.lab import TIME, Claims, Finding, Statement
from suites.margins import MEMORY, RATE, REALISED, each
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

STATEMENTS = (
    Statement(
        "no faster than the hardware",
        "no more floating-point work a second than matrix products reach in the same run",
        "the rate of a large matrix product on the same device and dtype",
        AtMost("flops_fraction", 1.0),
    ),
)


def speed(cells: pd.DataFrame) -> str:
    """Examples a second of the first operation, and its share of the hardware's rate."""
    cells = measured(cells, "examples_per_s", "operation")
    if cells.empty:
        return ""
    c = telling(cells[cells["operation"] == cells["operation"].iloc[0]]).iloc[0]
    share = c.get("flops_fraction", math.nan)
    peak = "" if math.isnan(share) else f", at {100 * share:.0f} % of a matrix product's rate there"
    return (
        f"{c['operation']} of {named(c)} processes {interval(c, 'examples_per_s')} examples a "
        f"second on {c['device']}{peak}."
    )


CLAIMS = Claims(
    metrics={
        **dict.fromkeys(("wall_s", "cold_s", "replayed_s"), TIME),
        **each(RATE, "examples_per_s", "flops_fraction"),
        "peak_bytes": MEMORY,
        **REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(80, speed),),
    first=FIRST,
    glossary=GLOSSARY,
)
