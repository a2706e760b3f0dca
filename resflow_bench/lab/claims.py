"""Claims about a suite's rows, as data: margins, statements, disputed statements and findings.

The engine tests them, and knows none of its own; each suite brings its own, see `suite.Suite`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """A margin: a metric may go from b to b + atol + rtol |b| in its worse direction.

    worse: "more" or "less" is worse, or "other": any change is, as of what the cell's axes alone
        decide.
    rtol, atol: the margin, relative and in the metric's unit: a change that nobody would act upon,
        or that another machine's rounding makes.
    is_time: whether it is read from a clock, so that the calls of one process share a disturbance
        and only processes are independent of each other.
    """

    worse: Literal["more", "less", "other"]
    rtol: float = 0.0
    atol: float = 0.0
    is_time: bool = False


class Rule(Protocol):
    """Cells in; out, per cell, on the same index: `p`, `shown`, `broken`, `reason`, `detail`.

    `p` is NaN where nothing was sampled; then `broken` decides. `shown`: the interval alone shows
    the statement. `reason`: why it does not.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that a cell must have to be tested."""
        ...

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        """One line for each cell."""
        ...


@dataclass(frozen=True)
class Statement:
    """A sentence of theory about the cells of a suite; `only`, a pandas query, restricts it."""

    name: str
    says: str
    source: str
    rule: Rule
    only: str = ""


@dataclass(frozen=True)
class Finding:
    """A sentence that the page begins with.

    rank: findings of lower rank come first, over all suites.
    find: cells (`analysis.tables.wide`) to the sentence, "" where they do not support one.
    """

    rank: int
    find: Callable[[pd.DataFrame], str]


@dataclass(frozen=True)
class Claims:
    """All claims about a suite's rows.

    metrics: metric to margin; a metric that is not here is shown by the gate and never judged.
    statements: theorems, whose violation is a failure of ours.
    disputed: statements made elsewhere that may be wrong, whose violation is a finding.
    findings: sentences for the head of the page.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()
    disputed: tuple[Statement, ...] = ()
    findings: tuple[Finding, ...] = ()
