"""ln|det(I + J_g)|: probes × truncation × products × gradient in one estimator, and the oracle."""

from collections.abc import Callable

import torch

from resflow_bench.jacobian import Linearisation, autograd, cached, dense, linearise
from resflow_bench.logdet.estimator import Averaged, Estimate, Estimator, LogDetEstimator
from resflow_bench.logdet.exact import Determinant, Exact, dense_log_det, exact_log_det, jacobian
from resflow_bench.logdet.expansions.arnoldi import Arnoldi
from resflow_bench.logdet.expansions.chebyshev import Chebyshev, SpectralInterval, measured_interval
from resflow_bench.logdet.expansions.circulant import CirculantControlled
from resflow_bench.logdet.expansions.control import Controlled
from resflow_bench.logdet.expansions.expansion import Expansion
from resflow_bench.logdet.expansions.taylor import Taylor
from resflow_bench.logdet.gradients import Gradient, Neumann, Series
from resflow_bench.logdet.laws import LAWS, Geometric, Poisson, Tabulated, law_named
from resflow_bench.logdet.optimal import optimal_roulette, pilot_roulette
from resflow_bench.logdet.probes import (
    Gaussian,
    Hadamard,
    Hierarchical,
    Orthogonal,
    Probe,
    Rademacher,
    Sphere,
)
from resflow_bench.logdet.truncation import Fixed, Roulette, Terms, Truncation
from resflow_bench.logdet.tuned import PerBranch, tuned
from resflow_bench.logdet.xtrace import XTrace
from resflow_bench.theory import Law

PROBES: dict[str, Probe] = {
    str(probe): probe
    for probe in (
        *(Gaussian(), Rademacher(), Sphere(), Orthogonal(), Hadamard()),
        Hierarchical(),
    )
}
"""The values of the axis `probe`, by name."""

EXPANSIONS: dict[str, Callable[[float], Expansion]] = {
    "taylor": lambda _: Taylor(),
    "taylor(bfloat16)": lambda _: Taylor(torch.bfloat16),
    "taylor(tf32)": lambda _: Taylor("tf32"),
    "arnoldi": lambda _: Arnoldi(),
    "controlled": lambda _: Controlled(),
    "circulant": lambda _: CirculantControlled(),
    "chebyshev": lambda lipschitz: Chebyshev(-lipschitz, lipschitz),
}
"""The values of the axis `expansion`, by name; each takes the branch's promised constant."""

__all__ = [
    "EXPANSIONS",
    "LAWS",
    "PROBES",
    "Arnoldi",
    "Averaged",
    "Chebyshev",
    "CirculantControlled",
    "Controlled",
    "Determinant",
    "Estimate",
    "Estimator",
    "Exact",
    "Expansion",
    "Fixed",
    "Gaussian",
    "Geometric",
    "Gradient",
    "Hadamard",
    "Hierarchical",
    "Law",
    "Linearisation",
    "LogDetEstimator",
    "Neumann",
    "Orthogonal",
    "PerBranch",
    "Poisson",
    "Probe",
    "Rademacher",
    "Roulette",
    "Series",
    "SpectralInterval",
    "Sphere",
    "Tabulated",
    "Taylor",
    "Terms",
    "Truncation",
    "XTrace",
    "autograd",
    "cached",
    "dense",
    "dense_log_det",
    "exact_log_det",
    "jacobian",
    "law_named",
    "linearise",
    "measured_interval",
    "optimal_roulette",
    "pilot_roulette",
    "tuned",
]
