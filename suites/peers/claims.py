"""Claims about other implementations, and their own claims: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.analysis.rules import Equals, Exactly
from resflow_bench.analysis.words import drawn, interval, measured, number
from resflow_bench.lab import TIME, Claims, Finding, Statement
from suites import margins
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

NOTICEABLE = 0.1  # nat
# All peers draw their number of terms from geometric(0.5). A finite variance takes rho^2 < 1/2
# there; the interval of a mean of some dozen calls is trusted where rho^8 < (1/2)^7.
LIGHT_TAILED = "mode == 'series' or spectral_radius < 0.54"

STATEMENTS = (
    Statement(
        "value as its formula",
        "the mean of an implementation's estimates is that of the formula in its source",
        "its source, evaluated on the blocks' Jacobians",
        Equals("bias", "bias_expected", margins.BIAS_RESOLUTION),
        only=LIGHT_TAILED,
    ),
    Statement(
        "the error within its certificate",
        "‖x̂ − x‖ is at most its certified bound, for a batch of latents in the cell's dtype",
        "the residual in float64, over the certified constants of all blocks",
        Exactly("inverse_batch_error", "inverse_batch_bound"),
    ),
    Statement(
        "the certificate as requested",
        "the certified bound on ‖x̂ − x‖ is at most the error that was requested",
        "`flows.ToError`, which goes on until it is, or refuses",
        Exactly("inverse_batch_bound", "inverse_asked"),
    ),
)

DISPUTED = (
    Statement(
        "the value is the log-determinant",
        "the mean of an implementation's estimates is ln |det(I + J)|",
        "claimed of each estimator in its source; judged by the mean of its formula, without draws",
        Equals("bias_expected", 0.0, margins.BIAS_RESOLUTION),
        only="implementation != 'ours' and mode != 'series'",
    ),
    Statement(
        "the inverse keeps its tolerance",
        "‖x̂ − x‖ is at most the tolerance requested of the inverse",
        "the tolerance's name; a bound on a step does not bound the error",
        Exactly("inverse_error", "inverse_asked"),
        only="implementation != 'ours'",
    ),
)


def another_quantity(cells: pd.DataFrame) -> str:
    """The implementation with the value farthest from the log-det by its own formula."""
    cells = measured(cells, "bias", "bias_expected", "implementation", "mode")
    if cells.empty:
        return ""
    cells = cells[(cells["implementation"] != "ours") & (cells["mode"] != "series")]
    cells = cells[cells["bias_expected"].abs() > NOTICEABLE]
    if cells.empty:
        return ""
    c = telling(cells).sort_values("bias_expected", key=np.abs, ascending=False).iloc[0]
    return (
        f"The value that {c['implementation']} returns as the log-det of {named(c)} in its mode "
        f"“{c['mode']}” is another quantity. By the formula in its source it is off by "
        f"{number(c['bias_expected'])} nat, and as measured by {interval(c, 'bias')} nat "
        f"({drawn(c, 'bias')})."
    )


def uncertified_inverse(cells: pd.DataFrame) -> str:
    """The inverse that misses its tolerance most, and its time beside that of a certified one."""
    cells = measured(cells, "inverse_batch_error", "inverse_asked", "inverse_over_ours")
    if cells.empty:
        return ""
    ours = cells[cells["implementation"] == "ours"]
    missed = cells[cells["inverse_batch_error"] > cells["inverse_asked"]]
    if missed.empty:
        return ""
    c = telling(missed).sort_values("inverse_batch_error", ascending=False).iloc[0]
    found = (
        f"The inverse of {c['implementation']} does not keep its tolerance. Of {named(c)} it is "
        f"off by {number(c['inverse_batch_error'])} where {number(c['inverse_asked'])} was "
        f"requested, in {interval(c, 'inverse_over_ours')} of the time of this package's "
        "certified inverse"
    )
    axes = ["model", "dim", "lipschitz", "dtype", "device"]
    same = ours[(ours[axes] == c[axes]).all(axis=1)]
    if same.empty or "inverse_batch_bound" not in same:
        return f"{found}."
    return f"{found}, whose error is at most {number(same['inverse_batch_bound'].iloc[0])}."


CLAIMS = Claims(
    metrics={
        "bias": margins.SAMPLED_NAT,
        **margins.each(margins.EXACT, "bias_expected", "log_det_exact"),
        "variance": margins.NOISE,
        "variance_is_finite": margins.FLAG,
        **margins.each(margins.ERROR, "inverse_error", "inverse_batch_error"),
        **margins.each(margins.ERROR, "inverse_bound", "inverse_batch_bound"),
        **margins.each(TIME, "wall_s", "step_s", "inverse_s"),
        **margins.each(margins.MEMORY, "peak_bytes", "peak_bytes_gradient"),
        **margins.REALISED,
    },
    statements=STATEMENTS,
    disputed=DISPUTED,
    findings=(Finding(40, another_quantity), Finding(41, uncertified_inverse)),
    first=FIRST,
    glossary=GLOSSARY
    | {
        "inverse_error, inverse_bound": "the largest ‖x̂ − x‖ of the points in float64, and the "
        "largest certified bound on it",
        "inverse_batch_error, inverse_batch_bound": "the same of a batch of latents, z ~ N(0, I), "
        "in the cell's dtype",
        "inverse_s": "the time of that batch's inverse, the certificate included, without a "
        "log-det",
    },
)
