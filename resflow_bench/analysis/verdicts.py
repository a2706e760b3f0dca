"""What theory says of each cell, and whether the measurement agrees.

A `Statement` is words and a rule; a rule takes the cells of a suite (`tables.wide`) to one line
each: how surprising the measurement is if the statement is true, and whether its interval alone
shows the statement. `judge` then controls the false discoveries over every cell and statement at
once, so that a thousand true statements do not yield ten violations:

    violated   rejected by Benjamini and Hochberg (1995) at q = 0.01, or broken without sampling
    holds      the 99 % interval shows it
    undecided  neither; `reason` says why
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from scipy import stats

from resflow_bench.analysis.tables import number, wide, with_interval
from resflow_bench.intervals import LEVEL

FALSE_DISCOVERIES = 0.01
ROUNDING = 1e-6  # relative, of a bound: eight units in the last place of float32
Z = stats.norm.ppf((1 + LEVEL) / 2)
OUTCOMES = {0: "converged", 1: "stopped at max_steps", 2: "stagnated", 3: "diverged"}
# A tolerance that the dtype can tell from rounding, and steps enough to reach it.
REACHABLE = (
    "tolerance > 0 and n_steps_bound <= max_steps and "
    "(dtype == 'float64' and tolerance >= 1e-14 or dtype == 'float32' and tolerance >= 1e-6)"
)
BIAS_RESOLUTION = 0.1  # nat: 0.002 bits per dimension at d = 64, below what models are told by
VERDICTS = ("holds", "violated", "undecided")
NO_INTERVAL, INFINITE = "no interval", "infinite variance"
CHANCE = "outside its interval, as one in a hundred is by chance"


class Rule(Protocol):
    """Cells in; out, per cell, on the same index: `p`, `shown`, `broken`, `reason`, `detail`.

    `p` is NaN where nothing was sampled; then `broken` decides. `shown`: the interval alone shows
    the statement. `reason`: why it does not.
    """

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def test(self, cells: pd.DataFrame) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Statement:
    """A sentence of theory about one suite; `only`, a query, restricts it."""

    suite: str
    name: str
    says: str
    source: str
    rule: Rule
    only: str = ""

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The rule's lines for the cells that it speaks of, with `cell`; maybe none."""
        if not set(self.rule.metrics) <= set(cells):
            return pd.DataFrame()
        cells = cells[cells["status"] == "ok"].dropna(subset=list(self.rule.metrics))
        if self.only:
            cells = cells.query(self.only)
        lines = self.rule.test(cells).assign(
            suite=self.suite, statement=self.name, cell=cells["cell"]
        )
        if "variance_is_finite" in cells:  # no interval of a mean or a variance means much then
            infinite = cells["variance_is_finite"].reindex(lines.index) == 0.0
            lines.loc[infinite, ["p", "shown", "reason"]] = [np.nan, False, INFINITE]
        return lines


@dataclass(frozen=True)
class Equals:
    """mean = reference, two-sided.

    Shown if the interval holds the reference and reaches no further than 10 % of it, or
    `resolution`, to either side.
    """

    metric: str
    reference: str | float
    resolution: float = 0.02  # nat (nat^2): what nobody would act upon

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.reference)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        interval, reference = _Intervals.of(cells, self.metric), _column(cells, self.reference)
        inside = (interval.low <= reference) & (reference <= interval.high)
        reach = np.maximum(0.1 * np.abs(reference), self.resolution)
        narrow = interval.high - interval.low <= 2 * reach
        unbounded = np.isneginf(interval.low) & np.isposinf(interval.high)
        reason = np.select(
            [interval.missing, unbounded, ~inside, ~narrow],
            [NO_INTERVAL, INFINITE, CHANCE, "interval too wide"],
            default="",
        )
        p = np.where(unbounded, np.nan, interval.p_value(reference))
        return _lines(cells, p, inside & narrow, reason, interval.against("expected", reference))


@dataclass(frozen=True)
class AtMost:
    """mean <= bound, one-sided; shown if the whole 99 % interval is inside.

    With `absolute`, |mean| <= bound. An infinite bound says nothing: such a cell is left out.
    `theory` is the metric of what the mean should be, to tell a bound that is attained.
    """

    metric: str
    bound: str | float
    theory: str = ""
    absolute: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.bound, self.theory)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        cells = cells[np.isfinite(_column(cells, self.bound))]
        interval, bound = _Intervals.of(cells, self.metric), _column(cells, self.bound)
        against = interval.against("bound", bound)
        bound = bound + ROUNDING * np.abs(bound)
        shown = interval.high <= bound
        if self.absolute:
            shown &= interval.low >= -bound
            interval = interval.mirrored(interval.value < 0)
        attained = np.zeros(len(cells), bool)
        if self.theory:
            attained = np.abs(_column(cells, self.theory)) >= bound * (1 - 1e-3)
        reason = np.select(
            [interval.missing, shown, interval.low > bound, attained],
            [NO_INTERVAL, "", CHANCE, "the bound is attained"],
            default="interval across the bound",
        )
        p = interval.p_value(bound, one_sided=True)
        return _lines(cells, p, shown, reason, against)


@dataclass(frozen=True)
class Exactly:
    """value <= bound, two numbers without sampling error, to rounding."""

    metric: str
    bound: str | float

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.bound)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        value, bound = _column(cells, self.metric), _column(cells, self.bound)
        shown = value <= bound + ROUNDING * np.abs(bound)
        digits = np.where(shown, 3, 8)  # a violation may be small
        three = zip(value, bound, digits, strict=True)
        words = [f"{number(v, n)}, bound {number(b, n)}" for v, b, n in three]
        if self.metric == "outcome":
            words = [OUTCOMES[int(v)] for v in value]
        lines = _lines(cells, np.full(len(cells), np.nan), shown, np.full(len(cells), ""), words)
        return lines.assign(broken=~shown)


STATEMENTS = (
    Statement(
        "bias",
        "bias as expected",
        "the mean of a truncated estimate is off by exactly tr S_N − ln|det(I + J)|",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("bias", "bias_expected", BIAS_RESOLUTION),
        only="truncation == 'fixed'",
    ),
    Statement(
        "bias",
        "bias as expected, paired",
        "so is its mean distance from vᵀ log(I + J) v with the same probes, which has less noise",
        "the same, E vᵀ log(I + J) v being the log-det itself",
        Equals("bias_paired", "bias_expected", BIAS_RESOLUTION),
    ),
    Statement(
        "bias",
        "bias within bound",
        "|bias| ≤ d τ_N(K), with τ_N(K) = Σ_{k>N} Kᵏ/k",
        "Behrmann et al. (2019), theorem 3",
        AtMost("bias_paired", "bias_bound", absolute=True, theory="bias_expected"),
        only="truncation == 'fixed'",
    ),
    Statement(
        "bias",
        "roulette unbiased",
        "a roulette estimate has no bias, whatever its law",
        "Chen et al. (2019), theorem 1",
        Equals("bias", 0.0, BIAS_RESOLUTION),
        only="truncation == 'roulette'",
    ),
    Statement(
        "variance",
        "variance as expected",
        "the variance is the closed form of its probe and truncation",
        "2‖sym A‖² + (κ₄ − 3) Σ A_ii², and Abel summation over the roulette's stops",
        Equals("variance", "variance_expected"),
    ),
    Statement(
        "variance",
        "variance within Avron–Toledo",
        "variance ≤ (2/m) ‖A‖²_F, with A the weighted series",
        "Avron and Toledo (2011), for symmetric A; any A, as vᵀAv = vᵀ sym(A) v",
        AtMost("variance", "variance_bound", theory="variance_expected"),
    ),
    Statement(
        "variance",
        "variance within Lipschitz bound",
        "variance ≤ (2d/m) (Σ_{k≤N} Kᵏ/k)², from K, d, m and N alone (roulette: its like)",
        "‖Jᵏ‖_F ≤ √d Kᵏ and the triangle inequality",
        AtMost("variance", "variance_bound_lipschitz", theory="variance_expected"),
    ),
    Statement(
        "inverse",
        "error within certificate",
        "‖x̂ − x‖ ≤ ‖r‖ / (1 − K), r the residual of the returned point",
        "Banach's fixed-point theorem, a posteriori",
        Exactly("error_over_bound", 1.0),
    ),
    Statement(
        "inverse",
        "error within Banach's rate",
        "after n steps, ‖x̂ − x‖ ≤ Kⁿ ‖g(y)‖ / (1 − K), block by block (float64, above rounding)",
        "Banach's fixed-point theorem, a priori",
        Exactly("inverse_error", "inverse_error_banach"),
        # Far above the rounding floor u / (1 - K), of which a theorem on real numbers says nothing.
        only="dtype == 'float64' and inverse_error_banach > 1e-6",
    ),
    Statement(
        "inverse",
        "steps within Banach's count",
        "no more steps than ln(ε (1 − K) / ‖g(y)‖) / ln K",
        "Banach's fixed-point theorem, a priori",
        Exactly("n_steps", "n_steps_bound"),
        only=REACHABLE,
    ),
    Statement(
        "inverse",
        "every solve converged",
        "every point met its tolerance",
        "K < 1 and a tolerance above the rounding floor u / (1 − K)",
        Exactly("outcome", 0.0),
        only=REACHABLE,
    ),
    Statement(
        "lipschitz",
        "certified within promised",
        "the product of the layers' norms, by SVD in float64, keeps the promise K",
        "Lip(g) ≤ Π ‖W_j‖₂ Lip(φ_j)",
        Exactly("lipschitz_certified", "lipschitz_promised"),
    ),
    Statement(
        "lipschitz",
        "realised within certified",
        "‖J(x)‖₂ at the points is no larger than the certified constant",
        "‖J(x)‖₂ ≤ Lip(g)",
        Exactly("lipschitz_realised", "lipschitz_certified"),
    ),
    Statement(
        "lipschitz",
        "spectral radius within norm",
        "ρ(J(x)) ≤ ‖J(x)‖₂",
        "every eigenvalue is at most any operator norm",
        Exactly("spectral_radius", "lipschitz_realised"),
    ),
    Statement(
        "throughput",
        "no faster than the hardware",
        "no more floating-point work a second than matrix products reach in the same run",
        "the rate of a large matrix product on the same device and dtype",
        AtMost("flops_fraction", 1.0),
    ),
)
# What is said elsewhere and is wrong: a cell that violates it is a finding, not our failure.
CLAIMS = (
    Statement(
        "variance",
        "variance within 2 H_N √d / m, as printed",
        "variance ≤ 2 H_N √d / m, as printed in a widely read post",
        "there the norm lost its square and the sum its signs; right is (2d/m) (Σ_{k≤N} Kᵏ/k)²",
        AtMost("variance", "variance_bound_printed", theory="variance_expected"),
        only="truncation == 'fixed'",
    ),
)


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


@dataclass(frozen=True)
class _Intervals:
    """99 % intervals of one metric, one per cell; `normal`: their standard error is known."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, cells: pd.DataFrame, metric: str) -> _Intervals:
        value, low, high, error = (
            _column(cells, metric + suffix) for suffix in ("", "_low", "_high", "_se")
        )
        return cls(value, low, high, ~np.isnan(error) | (low == high))

    @property
    def missing(self) -> np.ndarray:
        return np.isnan(self.low) | np.isnan(self.high)

    def mirrored(self, where: np.ndarray) -> _Intervals:
        low, high = np.where(where, -self.high, self.low), np.where(where, -self.low, self.high)
        return _Intervals(np.where(where, -self.value, self.value), low, high, self.normal)

    def p_value(self, reference: np.ndarray, one_sided: bool = False) -> np.ndarray:
        """From z = 2.576 distance / half-width, the half on the reference's side.

        An interval that is not normal (Chebyshev's, or one that is open above) can only say
        "outside": p = 0.01. NaN where there is no interval.
        """
        distance = self.value - reference
        half = np.where(distance > 0, self.value - self.low, self.high - self.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(distance == 0.0, 0.0, Z * distance / half)
        outside = self.low > reference
        if not one_sided:
            z, outside = np.abs(z), outside | (self.high < reference)
        tail = stats.norm.sf(z) * (1 if one_sided else 2)
        p = np.where(self.normal, tail, np.where(outside, 1 - LEVEL, 1.0))
        return np.where(self.missing, np.nan, p)

    def against(self, word: str, reference: np.ndarray) -> list[str]:
        four = zip(self.value, self.low, self.high, reference, strict=True)
        return [f"{with_interval(v, a, b)}, {word} {number(r)}" for v, a, b, r in four]


def _named(*metrics: str | float) -> tuple[str, ...]:
    return tuple(m for m in metrics if isinstance(m, str) and m)


def _column(cells: pd.DataFrame, source: str | float) -> np.ndarray:
    if isinstance(source, str):
        return cells[source].to_numpy(float)
    return np.full(len(cells), source)


def _lines(
    cells: pd.DataFrame, p: np.ndarray, shown: np.ndarray, reason: np.ndarray, detail: list[str]
) -> pd.DataFrame:
    columns = {"p": p, "shown": shown, "broken": False, "reason": reason, "detail": detail}
    return pd.DataFrame(columns, index=cells.index)
