"""Claims about the variance: margins, statements, a printed bound, three findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.analysis.rules import AtMost, Equals
from resflow_bench.analysis.words import (
    drawn,
    interval,
    measured,
    share,
    span,
    with_interval,
)
from resflow_bench.lab import Claims, Finding, Statement
from resflow_bench.theory import error_of_ess
from suites.margins import EXACT, FLAG, NOISE, REALISED, SHARE, TARGET, each
from suites.models import FIRST, GLOSSARY, WEIGHTS, named, telling

if TYPE_CHECKING:
    import pandas as pd

KEPT = 0.99
"""The share of the effective sample size that users who reweight ask for."""

STATEMENTS = (
    Statement(
        "variance as expected",
        "the variance is the closed form of its probe and truncation",
        "2‖sym A‖² + (κ₄ − 3) Σ A_ii², and Abel summation over the roulette's stops",
        Equals("variance", "variance_expected"),
    ),
    Statement(
        "variance within Avron–Toledo",
        "variance ≤ (2/m) ‖A‖²_F, with A the weighted series",
        "Avron and Toledo (2011), for symmetric A; any A, as vᵀAv = vᵀ sym(A) v",
        AtMost("variance", "variance_bound", theory="variance_expected"),
    ),
    Statement(
        "variance within Lipschitz bound",
        "variance ≤ (2d/m) (Σ_{k≤N} Kᵏ/k)², from K, d, m and N alone (for a roulette, "
        "the corresponding sum)",
        "‖Jᵏ‖_F ≤ √d Kᵏ and the triangle inequality",
        AtMost("variance", "variance_bound_lipschitz", theory="variance_expected"),
    ),
    Statement(
        "effective sample size as expected",
        "weights exp(e) lose the share 1 − E[w]²/E[w²] of the effective sample size, "
        "with E[exp(t vᵀAv)] = det(I − 2t sym A)^(−1/2) for a Gaussian probe v",
        "the moment generating function of a quadratic form",
        Equals("ess_loss", "ess_loss_expected"),
        only="truncation == 'fixed' and probe == 'gaussian'",
    ),
)

DISPUTED = (
    Statement(
        "variance within 2 H_N √d / m, as printed",
        "variance ≤ 2 H_N √d / m, as printed in a widely read post",
        "the post drops the square of the norm and the signs of the sum; the correct bound is "
        "(2d/m) (Σ_{k≤N} Kᵏ/k)²",
        AtMost("variance", "variance_bound_printed", theory="variance_expected"),
        only="truncation == 'fixed'",
    ),
)


def probes(cells: pd.DataFrame) -> str:
    """The variance of a probe, and the number of probes for a standard deviation of `TARGET`."""
    cells = measured(cells, "variance", "variance_expected", "variance_bound")
    cells = cells[(cells["variance_expected"] > 0) & np.isfinite(cells["variance_expected"])]
    cells = cells[cells["truncation"] == "fixed"]  # more probes do nothing for a roulette's noise
    if cells.empty:
        return ""
    order = cells.assign(_terms=-cells["n_terms"].fillna(0).astype(float))
    c = telling(order).sort_values(["n_probes", "_terms"], kind="stable").iloc[0]
    m = int(c["n_probes"])
    needed = float(f"{m * c['variance'] / TARGET**2:.2g}")
    these = f"{m if m > 1 else 'One'} {c['probe'].capitalize()} probe{'s' * (m > 1)}"
    used = share(c["variance"] / c["variance_bound"], "Avron and Toledo's bound")
    return (
        f"{these} on {named(c)} give{'s' * (m == 1)} a variance of {interval(c, 'variance')} nat². "
        f"That is {used} ({drawn(c, 'variance')}). A standard deviation of {TARGET} nat takes "
        f"about {needed:,.0f} probes."
    )


def weights(cells: pd.DataFrame) -> str:
    """The effective sample size of weights from one draw, and the draws that keep `KEPT` of it."""
    cells = measured(cells, "ess_loss", "ess_loss_expected", "variance_expected")
    cells = cells[(cells["truncation"] == "roulette") & (cells["variance_expected"] > 0)]
    cells = cells[np.isfinite(cells["variance_expected"])]
    if cells.empty:
        return ""
    c = telling(cells).sort_values(["variance_expected"], kind="stable").iloc[0]
    n = max(2.0, float(f"{c['variance_expected'] / error_of_ess(KEPT) ** 2:.2g}"))
    kept = with_interval(*(100 * (1 - c[f"ess_loss{end}"]) for end in ("", "_high", "_low")))
    return (
        f"Importance weights from one draw of {c['roulette']} on {named(c)} keep {kept} % of the "
        f"effective sample size ({drawn(c, 'ess_loss')}). The mean of about {n:,.0f} draws keeps "
        f"{100 * KEPT:g} %."
    )


def infinite(cells: pd.DataFrame) -> str:
    """The roulettes of infinite variance."""
    cells = measured(cells, "variance_is_finite", "roulette", "spectral_radius")
    if cells.empty:
        return ""
    is_infinite = cells["variance_is_finite"] == 0
    laws = [
        _of_law(str(law), some, some[is_infinite[some.index]])
        for law, some in cells.groupby("roulette")
    ]
    n, n_infinite = len(cells), is_infinite.sum()
    head = f"{n_infinite:,} of {n:,} roulettes measured have infinite variance."
    if not n_infinite:
        return f"All {n:,} roulettes measured have finite variance. {'; '.join(laws)}."
    return f"{head} {'; '.join(laws)}. The mean of any number of such draws has it too."


def _of_law(law: str, cells: pd.DataFrame, without: pd.DataFrame) -> str:
    """A law's cells, those `without` a finite variance, and the spectral radii there."""
    if without.empty:
        return f"{law}: finite in {len(cells):,} of {len(cells):,}, ρ = {_radii(cells)}"
    return f"{law}: infinite in {len(without):,} of {len(cells):,}, ρ = {_radii(without)}"


def _radii(cells: pd.DataFrame) -> str:
    return span(cells["spectral_radius"])


CLAIMS = Claims(
    metrics={
        "variance": NOISE,
        **each(
            EXACT,
            "variance_expected",
            "variance_reachable",
            "variance_bound",
            "variance_bound_lipschitz",
            "variance_bound_printed",
            "ess_loss_expected",
        ),
        "ess_loss": SHARE,
        "variance_is_finite": FLAG,
        **REALISED,
    },
    statements=STATEMENTS,
    disputed=DISPUTED,
    findings=(Finding(50, probes), Finding(60, weights), Finding(70, infinite)),
    first=FIRST,
    glossary={**GLOSSARY, **WEIGHTS},
)
