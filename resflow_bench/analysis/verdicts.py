"""Verdicts on the agreement of each measured cell with the statements of its suite.

`judge` tests every statement on every cell and controls the false discoveries over all of them at
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

from resflow_bench.analysis.rules import apply
from resflow_bench.analysis.tables import wide
from resflow_bench.lab import Statement, Suite

FALSE_DISCOVERIES = 0.01
VERDICTS = ("holds", "violated", "undecided")
_COLUMNS = ["suite", "statement", "cell", "verdict", "p", "q", "reason", "detail"]


def judge(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> pd.DataFrame:
    """The verdict on every statement of the suites for every cell that it selects.

    Args:
        frames: suite to its rows, long or `wide`; those of a suite that is not in `suites` are not
            judged.

    Returns:
        suite, statement, cell, verdict, p, q, reason, detail; p and q are NaN where nothing was
        sampled (two exact numbers were compared) and where no interval can be given.
    """
    return _judge(frames, {name: suite.claims.statements for name, suite in suites.items()})


def judge_disputed(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> pd.DataFrame:
    """`judge` for the disputed statements, with false discoveries controlled separately."""
    return _judge(frames, {name: suite.claims.disputed for name, suite in suites.items()})


def _judge(
    frames: Mapping[str, pd.DataFrame], statements: Mapping[str, Iterable[Statement]]
) -> pd.DataFrame:
    cells = {name: wide(frames[name]) for name in statements if len(frames.get(name, ()))}
    tested = [
        apply(statement, cells[name]).assign(suite=name)
        for name in cells
        for statement in statements[name]
    ]
    if not any(map(len, tested)):
        return pd.DataFrame(columns=_COLUMNS)
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
    return lines.assign(verdict=verdict, q=q, reason=reason)[_COLUMNS]


def summary(verdicts: pd.DataFrame) -> pd.DataFrame:
    """suite, statement, holds, violated, undecided: cells of each verdict, in `verdicts`' order."""
    counts = verdicts.groupby(["suite", "statement"], sort=False)["verdict"].value_counts()
    table = counts.unstack(fill_value=0).reindex(columns=list(VERDICTS), fill_value=0)
    order = verdicts[["suite", "statement"]].drop_duplicates()
    return order.merge(table.reset_index(), on=["suite", "statement"])
