"""ln|det(I + J_g)|: probes x truncation x products x gradient in one estimator, and the oracle."""

from collections.abc import Callable

from resflow_bench.logdet.estimator import Estimate, Estimator, LogDetEstimator
from resflow_bench.logdet.exact import Exact, dense_log_det, exact_log_det, jacobian
from resflow_bench.logdet.expansions import Expansion, Taylor
from resflow_bench.logdet.gradients import Gradient, Neumann, Series
from resflow_bench.logdet.probes import Gaussian, Probe, Rademacher
from resflow_bench.logdet.products import Linearisation, autograd, cached, dense, linearise
from resflow_bench.logdet.truncation import (
    Fixed,
    Geometric,
    Law,
    Poisson,
    Roulette,
    Terms,
    Truncation,
)

PROBES: dict[str, Probe] = {str(probe): probe for probe in (Gaussian(), Rademacher())}
"""What the axis `probe` offers, by name."""

LAWS: dict[str, Callable[[float], Law]] = {
    law.__name__.lower(): law for law in (Geometric, Poisson)
}
"""What the axis `roulette` offers, by name; each takes one number."""

__all__ = [
    "LAWS",
    "PROBES",
    "Estimate",
    "Estimator",
    "Exact",
    "Expansion",
    "Fixed",
    "Gaussian",
    "Geometric",
    "Gradient",
    "Law",
    "Linearisation",
    "LogDetEstimator",
    "Neumann",
    "Poisson",
    "Probe",
    "Rademacher",
    "Roulette",
    "Series",
    "Taylor",
    "Terms",
    "Truncation",
    "autograd",
    "cached",
    "dense",
    "dense_log_det",
    "exact_log_det",
    "jacobian",
    "linearise",
]
