"""The sentences that a reader should take away from the measured rows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from resflow_bench.analysis.tables import wide
from resflow_bench.lab import Suite

MAX_FINDINGS = 3


Said = list[tuple[int, str, str]]
"""Rank, suite and sentence of each finding that the rows support, suite by suite."""


def sentences(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> Said:
    """The sentences of all suites' claims.

    Args:
        frames: suite to its rows, long or `wide`.
    """
    said: Said = []
    for name, suite in suites.items():
        if suite.claims.findings and len(frames.get(name, ())):
            cells = wide(frames[name])
            found = [(one.rank, name, one.find(cells)) for one in suite.claims.findings]
            said += [one for one in found if one[-1]]
    return said


def first_of(said: Said) -> list[str]:
    """At most `MAX_FINDINGS` sentences, in the order of their ranks."""
    return [sentence for *_, sentence in sorted(said, key=lambda one: one[0])][:MAX_FINDINGS]


def findings(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> list[str]:
    """`first_of` the `sentences`."""
    return first_of(sentences(frames, suites))
