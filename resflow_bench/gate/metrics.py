"""Which way each metric gets worse, and by how much it may before anybody should act.

The one place where that is declared. A metric of a new suite is one line here; one that is not here
is shown and never judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """May go from b to b + atol + rtol |b| in the direction that is worse, and no further.

    worse: "more" is, "less" is, or "other" (either way): what the cell's axes alone decide.
    rtol, atol: the margin, relative and in the metric's unit; a change within it is nobody's
        concern, or is what another machine's rounding makes.
    is_time: read from a clock, so that calls of one process share its fate and only processes are
        independent of each other.
    """

    worse: Literal["more", "less", "other"]
    rtol: float = 0.0
    atol: float = 0.0
    is_time: bool = False


_TIME = Metric("more", rtol=0.05, is_time=True)
_RATE = Metric("less", rtol=0.05, is_time=True)
_MEMORY = Metric("more", rtol=0.05)
_SAMPLED_NAT = Metric("other", atol=0.01)
_EXACT = Metric("other", rtol=1e-3, atol=1e-6)  # float32's rounding, on another machine
_BITS = Metric("other", atol=0.005)  # bit/dim: half of the last digit that is printed
_NOISE = Metric("more", rtol=0.05, atol=1e-9)
_ERROR = Metric("more", rtol=1.0, atol=1e-12)  # at the floor of rounding a factor two is chance

METRICS: dict[str, Metric] = {
    "bias": _SAMPLED_NAT,
    "bias_paired": _SAMPLED_NAT,
    "bias_expected": _EXACT,
    "bias_bound": _EXACT,
    "log_det_exact": _EXACT,
    "variance": _NOISE,
    "variance_expected": _EXACT,
    "variance_reachable": _EXACT,
    "variance_bound": _EXACT,
    "variance_bound_lipschitz": _EXACT,
    "variance_bound_printed": _EXACT,
    "variance_is_finite": Metric("less"),
    "inverse_error": _ERROR,
    "inverse_error_bound": _ERROR,
    "residual": _ERROR,
    "outcome": Metric("more"),
    "n_steps": Metric("more", rtol=0.1, atol=1.0),
    "n_steps_bound": Metric("other", rtol=0.05, atol=1.0),
    "inverse_error_banach": _EXACT,
    "lipschitz_promised": _EXACT,
    "lipschitz_certified": Metric("more", rtol=1e-4),
    "lipschitz_power_iteration": Metric("more", rtol=1e-2),
    "lipschitz_realised": _EXACT,
    "norm_realised": _EXACT,
    "spectral_radius": _EXACT,
    "wall_s": _TIME,
    "examples_per_s": _RATE,
    "flops_fraction": _RATE,
    "seconds_per_example": _TIME,
    "seconds_to_target": _TIME,
    "exponent": Metric("more", atol=0.05, is_time=True),
    "exponent_flops": Metric("more", atol=1e-3),
    "overhead_s": _TIME,
    "marginal_s": _TIME,
    "wall_s_1": _TIME,
    "wall_s_2": _TIME,
    "wall_s_4": _TIME,
    "wall_s_8": _TIME,
    "peak_bytes": _MEMORY,
    "peak_bytes_gradient": _MEMORY,
    "n_products": Metric("more", rtol=0.05),
    "gap": _BITS,
    "gap_expected": _BITS,
    "gap_bound": _EXACT,
    "log_prob": Metric("less", atol=0.05),
    "divergence": Metric("more", atol=0.05),
    "bits_per_dim": Metric("more", atol=0.005),
    "log_prob_true": _EXACT,
    "log_prob_exact": _BITS,
    "log_prob_objective": _BITS,
    "log_prob_unbiased": _BITS,
}
