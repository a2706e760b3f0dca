"""ln|det(I + J_g)|: probes x truncation x products x gradient in one estimator, and the oracle."""

from collections.abc import Callable

import torch

from resflow_bench.jacobian.products import Linearisation, autograd, cached, dense, linearise
from resflow_bench.logdet.arnoldi import Arnoldi
from resflow_bench.logdet.averaged import Averaged
from resflow_bench.logdet.chebyshev import Chebyshev, Interval, measured_interval
from resflow_bench.logdet.compiling import Compiled
from resflow_bench.logdet.control import Controlled
from resflow_bench.logdet.estimator import Estimate, Estimator, LogDetEstimator
from resflow_bench.logdet.exact import Determinant, Exact, dense_log_det, exact_log_det, jacobian
from resflow_bench.logdet.expansions import Expansion, Taylor
from resflow_bench.logdet.gradients import Gradient, Neumann, Series
from resflow_bench.logdet.laws import Geometric, Law, Poisson, Tabulated
from resflow_bench.logdet.optimal import optimal_roulette, pilot_roulette
from resflow_bench.logdet.probes import Gaussian, Hadamard, Orthogonal, Probe, Rademacher, Sphere
from resflow_bench.logdet.truncation import Fixed, Roulette, Terms, Truncation
from resflow_bench.logdet.tuned import PerBranch, tuned

PROBES: dict[str, Probe] = {
    str(probe): probe for probe in (Gaussian(), Rademacher(), Sphere(), Orthogonal(), Hadamard())
}
"""What the axis `probe` offers, by name."""

LAWS: dict[str, Callable[[float], Law]] = {
    law.__name__.lower(): law for law in (Geometric, Poisson)
}
"""What the axis `roulette` offers, by name; each takes one number."""

EXPANSIONS: dict[str, Callable[[float], Expansion]] = {
    "taylor": lambda _: Taylor(),
    "taylor(bfloat16)": lambda _: Taylor(torch.bfloat16),
    "taylor(tf32)": lambda _: Taylor("tf32"),
    "compiled": lambda _: Compiled(),
    "arnoldi": lambda _: Arnoldi(),
    "controlled": lambda _: Controlled(),
    "chebyshev": lambda lipschitz: Chebyshev(-lipschitz, lipschitz),
}
"""What the axis `expansion` offers, by name; each takes the branch's promised constant."""

__all__ = [
    "EXPANSIONS",
    "LAWS",
    "PROBES",
    "Arnoldi",
    "Averaged",
    "Chebyshev",
    "Compiled",
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
    "Interval",
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
    "Sphere",
    "Tabulated",
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
    "measured_interval",
    "optimal_roulette",
    "pilot_roulette",
    "tuned",
]
