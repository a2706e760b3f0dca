"""Claims about the speed: margins, a statement, a finding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtMost
from resflow_bench.analysis.words import drawn, interval, measured, share
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
    part = c.get("flops_fraction", math.nan)
    rate = "the rate of a matrix product there"
    peak = "" if math.isnan(part) else f" It runs at {share(part, rate)}."
    return (
        f"{c['operation']} of {named(c)} processes {interval(c, 'examples_per_s')} examples a "
        f"second on {c['device']} ({drawn(c, 'examples_per_s')}).{peak}"
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
