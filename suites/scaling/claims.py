"""Claims about the growing cost: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtMost, Exactly
from resflow_bench.analysis.words import interval, measured
from resflow_bench.lab import TIME, Claims, Finding, Metric, Statement
from suites.margins import RATE, each

if TYPE_CHECKING:
    import pandas as pd

GROWING = {"n_terms": "terms", "n_probes": "probes", "batch_size": "examples"}
RESOLUTION = 0.05  # of an exponent: 11 % over a ladder from 1 to 8, what leaving a cache may cost

STATEMENTS = (
    Statement(
        "work no worse than linear",
        "the FLOPs of a log-prob are at most proportional to its terms, probes and examples",
        "one product per term, probe and example",
        Exactly("exponent_flops", 1.0),
    ),
    Statement(
        "seconds no worse than linear",
        f"the seconds of a log-prob grow as nᵉ with e ≤ {1 + RESOLUTION:g}",
        "seconds proportional to the products, plus a constant, which lowers e",
        AtMost("exponent", 1 + RESOLUTION),
    ),
)


def cost(cells: pd.DataFrame) -> str:
    """The constant and the slope of the widest flow's log-prob."""
    needed = ("overhead_s", "marginal_s", "flops_fraction", "grows", "dim", "width")
    cells = measured(cells, *needed)
    if cells.empty:
        return ""
    c = cells[cells["width"] == cells["width"].max()].iloc[0]
    return (
        f"A log-prob at d = {c['dim']:,}, h = {c['width']:,} takes "
        f"{interval(c, 'overhead_s', 1e3)} ms and another {interval(c, 'marginal_s', 1e3)} ms for "
        f"each of its {GROWING[c['grows']]}. At the largest number of them it runs at "
        f"{interval(c, 'flops_fraction', 100)} % of the rate of a matrix product on {c['device']}."
    )


CLAIMS = Claims(
    metrics={
        "exponent": Metric("more", atol=RESOLUTION, is_time=True),
        "exponent_flops": Metric("more", atol=1e-3),
        **each(TIME, "overhead_s", "marginal_s"),
        "flops_fraction": RATE,
        **{f"wall_s_{factor}": TIME for factor in (1, 2, 4, 8)},
    },
    statements=STATEMENTS,
    findings=(Finding(90, cost),),
)
