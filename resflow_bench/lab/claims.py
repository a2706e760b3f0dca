"""Claims about a suite's rows, as data: margins, statements, disputed statements and findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """A margin: a metric may go from b to b + atol + rtol |b| in its worse direction.

    worse: "more" or "less" is worse; or "other": any change is worse, for a value that the cell's
        axes alone determine.
    rtol, atol: the margin, relative and in the metric's unit. It covers changes that nobody would
        act upon, and the rounding of another machine.
    is_time: whether the value is read from a clock. The calls of one process then share its
        disturbances, and only processes are independent of each other.
    """

    worse: Literal["more", "less", "other"]
    rtol: float = 0.0
    atol: float = 0.0
    is_time: bool = False

    def __post_init__(self) -> None:
        if self.worse not in ("more", "less", "other"):
            raise ValueError(f"Metric is worse if `more`, `less` or `other`; got {self.worse!r}.")


TIME = Metric("more", rtol=0.05, is_time=True)
"""Seconds in any suite; asv's `wall_s`, which every suite has, is judged by it."""


class Rule(Protocol):
    """A comparison of columns, as `analysis.rules.AtMost`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that a cell must have to be tested."""
        ...

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        """One line per cell: `p`, `shown`, `broken`, `reason`, `detail`, on the cells' index.

        p: the p-value; NaN where nothing was sampled, and `broken` decides instead.
        shown: whether the interval alone shows the statement.
        reason: why the interval does not show it.
        detail: the numbers compared, in words.
        """
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
    """What the rows of a suite show, in a few sentences.

    rank: findings of lower rank come first, over all suites.
    find: from cells (`analysis.tables.wide`) to the sentences, "" where they do not support them.
        The first is the conclusion, which the page sets in bold.
    """

    rank: int
    find: Callable[[pd.DataFrame], str]


@dataclass(frozen=True)
class Claims:
    """All claims about a suite's rows, and the words that a reader needs for them.

    metrics: metric to margin; a metric that is not here is shown by the gate and never judged.
    statements: theorems, whose violation is a failure of ours.
    disputed: statements made elsewhere that may be wrong, whose violation is a finding.
    findings: sentences for the head of the page.
    first: a pandas query; its cells stand first in the suite's table on the page.
    glossary: term to meaning, for the page.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()
    disputed: tuple[Statement, ...] = ()
    findings: tuple[Finding, ...] = ()
    first: str = ""
    glossary: Mapping[str, str] = field(default_factory=dict)
