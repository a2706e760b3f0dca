"""Claims about launches and waits: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import Exactly
from resflow_bench.analysis.words import measured
from resflow_bench.lab import Claims, Finding, Metric, Statement

if TYPE_CHECKING:
    import pandas as pd

OURS = "implementation == 'ours' and "

STATEMENTS = (
    Statement(
        "a log-prob does not wait",
        "log-prob, its gradient and the update of the norms never make the host wait",
        "their kernels depend on no value on the device; counted, line by line",
        Exactly("n_waits", 0.0),
        only=OURS + "operation in ('log_prob', 'gradient', 'update')",
    ),
    Statement(
        "one wait in a training step",
        "a training step makes the host wait once, for the loss and the gradient's norm",
        "divergence is found before the parameters are changed, so these two are read",
        Exactly("n_waits", 1.0),
        only=OURS + "operation == 'train_step'",
    ),
    Statement(
        "few waits in an inverse",
        "a certified inverse makes the host wait at most 12 times",
        "a fixed-point iteration asks now and then whether all examples have converged",
        Exactly("n_waits", 12.0),
        only=OURS + "operation == 'certified_inversion'",
    ),
    Statement(
        "few waits in a sample",
        "a sample makes the host wait at most 4 times",
        "a fixed-point iteration asks now and then whether all examples have converged",
        Exactly("n_waits", 4.0),
        only=OURS + "operation == 'sample'",
    ),
)


def asked(cells: pd.DataFrame) -> str:
    """Launches and waits of the first operation that every implementation was measured at."""
    cells = measured(cells, "n_launches", "n_waits", "implementation", "operation", "mode")
    counts = cells.groupby(["operation", "mode"], sort=False)["implementation"].nunique()
    if counts.empty or counts.max() < 2:
        return ""
    operation, mode = counts.idxmax()
    here = cells[(cells["operation"] == operation) & (cells["mode"] == mode)]
    here = here.drop_duplicates("implementation")
    waits, launches = (
        ", ".join(f"{c['implementation']} {c[count]:,.0f}" for _, c in here.iterrows())
        for count in ("n_waits", "n_launches")
    )
    return (
        f"Waits of the host for an accelerator in {operation} (mode “{mode}”): {waits}. Kernels "
        f"launched: {launches}."
    )


CLAIMS = Claims(
    metrics={"n_launches": Metric("more", rtol=0.02), "n_waits": Metric("more")},
    statements=STATEMENTS,
    findings=(Finding(85, asked),),
    glossary={
        "launch": "a kernel or a copy that the host queues on the device; each takes the host some "
        "microseconds",
        "wait": "the host stands still until the device has finished everything queued before",
    },
)
