"""The sentences that a reader should take away from the measured rows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from resflow_bench.analysis.tables import wide
from resflow_bench.lab import Suite

MAX_FINDINGS = 3


def findings(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> list[str]:
    """At most `MAX_FINDINGS` sentences of the suites' claims, in the order of their ranks.

    Args:
        frames: suite to its rows, long or `wide`.
    """
    several = [
        (finding, name)
        for name, suite in suites.items()
        if len(frames.get(name, ()))
        for finding in suite.claims.findings
    ]
    cells = {name: wide(frames[name]) for _, name in several}
    several.sort(key=lambda pair: pair[0].rank)
    sentences = (finding.find(cells[name]) for finding, name in several)
    return [sentence for sentence in sentences if sentence][:MAX_FINDINGS]


def answers(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> dict[str, str]:
    """Suite to the first sentence of its claims that its rows support."""
    said: dict[str, str] = {}
    for name, suite in suites.items():
        if len(frames.get(name, ())):
            cells = wide(frames[name])
            sentences = (finding.find(cells) for finding in suite.claims.findings)
            if sentence := next(filter(None, sentences), ""):
                said[name] = sentence
    return said
