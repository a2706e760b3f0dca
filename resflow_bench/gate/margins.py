"""The margin of each metric of each suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resflow_bench.lab import TIME, Metric

if TYPE_CHECKING:
    from resflow_bench.lab import Suite


@dataclass(frozen=True)
class Margins:
    """Suite to metric to margin. `wall_s` is a time in every suite, also in one not listed."""

    declared: Mapping[str, Mapping[str, Metric]]

    @classmethod
    def of_suites(cls, suites: Mapping[str, Suite]) -> Margins:
        """The margins that the suites' claims declare."""
        return cls({name: suite.claims.metrics for name, suite in suites.items()})

    def of(self, suite: str, metric: str) -> Metric | None:
        """None where the suite declares no margin."""
        found = self.declared.get(suite, {}).get(metric)
        return TIME if found is None and metric == "wall_s" else found

    def is_time(self, suite: str, metric: str) -> bool:
        """Whether the metric is known to be read from a clock."""
        found = self.of(suite, metric)
        return found is not None and found.is_time
