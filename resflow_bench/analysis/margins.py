"""The margin of each metric of each suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resflow_bench.lab import TIME, Metric, Suite


@dataclass(frozen=True)
class Margins:
    """Suite to metric to margin. `wall_s` is a time in every suite, also in one not listed."""

    declared: Mapping[str, Mapping[str, Metric]]

    @classmethod
    def of_suites(cls, suites: Mapping[str, Suite]) -> Margins:
        return cls({name: suite.claims.metrics for name, suite in suites.items()})

    def of(self, suite: str, metric: str) -> Metric | None:
        """The metric's margin; None where the suite declares none."""
        margin = self.declared.get(suite, {}).get(metric)
        return TIME if margin is None and metric == "wall_s" else margin

    def is_time(self, suite: str, metric: str) -> bool:
        margin = self.of(suite, metric)
        return margin is not None and margin.is_time
