"""ln|det(I + J_g)|: probes x truncation x products, composed by one estimator, and the oracle."""

from resflow_bench.logdet.estimator import Estimate, Estimator, LogDetEstimator
from resflow_bench.logdet.exact import Exact, exact_log_det, jacobian
from resflow_bench.logdet.probes import Gaussian, Probe, Rademacher
from resflow_bench.logdet.products import Linearisation, autograd, cached, dense, linearise
from resflow_bench.logdet.truncation import Fixed, Geometric, Law, Poisson, Roulette, Truncation

__all__ = [
    "Estimate",
    "Estimator",
    "Exact",
    "Fixed",
    "Gaussian",
    "Geometric",
    "Law",
    "Linearisation",
    "LogDetEstimator",
    "Poisson",
    "Probe",
    "Rademacher",
    "Roulette",
    "Truncation",
    "autograd",
    "cached",
    "dense",
    "exact_log_det",
    "jacobian",
    "linearise",
]
