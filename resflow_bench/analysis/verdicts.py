"""What theory says of each cell, and whether the measurement agrees.

`judge` asks every statement of every cell, and controls the false discoveries over all of them at
once, so that a thousand true statements do not yield ten violations:

    violated   rejected by Benjamini and Hochberg (1995) at q = 0.01, or broken without sampling
    holds      the 99 % interval shows it
    undecided  neither; `reason` says why
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from resflow_bench.analysis.rules import Statement
from resflow_bench.analysis.statements import STATEMENTS
from resflow_bench.analysis.tables import wide

FALSE_DISCOVERIES = 0.01
VERDICTS = ("holds", "violated", "undecided")


def judge(
    frames: Mapping[str, pd.DataFrame], statements: Iterable[Statement] = STATEMENTS
) -> pd.DataFrame:
    """Every statement on every cell that it speaks of, the false discoveries controlled over all.

    Args:
        frames: suite to long frame of rows.
        statements: `STATEMENTS`, or `CLAIMS`.

    Returns:
        suite, statement, cell, verdict, p, q, reason, detail; p and q are NaN where nothing was
        sampled (two exact numbers were compared) and where no interval can be given.
    """
    cells = {suite: wide(frame) for suite, frame in frames.items() if len(frame)}
    tested = [s.test(cells[s.suite]) for s in statements if s.suite in cells]
    columns = ["suite", "statement", "cell", "verdict", "p", "q", "reason", "detail"]
    if not any(map(len, tested)):
        return pd.DataFrame(columns=columns)
    lines = pd.concat([t for t in tested if len(t)], ignore_index=True)
    p = lines["p"].to_numpy(float)
    sampled = ~np.isnan(p)
    q = np.full(len(p), np.nan)
    if sampled.any():
        q[sampled] = stats.false_discovery_control(p[sampled], method="bh")
    violated = lines["broken"].to_numpy(bool) | (q <= FALSE_DISCOVERIES)
    shown = lines["shown"].to_numpy(bool)
    verdict = np.select([violated, shown], ["violated", "holds"], "undecided")
    reason = np.where(verdict == "undecided", lines["reason"], "")
    return lines.assign(verdict=verdict, q=q, reason=reason)[columns]


def summary(verdicts: pd.DataFrame) -> pd.DataFrame:
    """suite, statement, holds, violated, undecided: cells of each verdict, in STATEMENTS' order."""
    counts = verdicts.groupby(["suite", "statement"], sort=False)["verdict"].value_counts()
    table = counts.unstack(fill_value=0).reindex(columns=list(VERDICTS), fill_value=0)
    order = verdicts[["suite", "statement"]].drop_duplicates()
    return order.merge(table.reset_index(), on=["suite", "statement"])
