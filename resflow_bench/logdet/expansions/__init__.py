"""Expansions of log(I + J): the series whose terms a probe evaluates."""

from resflow_bench.logdet.expansions.arnoldi import Arnoldi
from resflow_bench.logdet.expansions.chebyshev import (
    Chebyshev,
    SpectralInterval,
    measured_interval,
)
from resflow_bench.logdet.expansions.compiled import Compiled
from resflow_bench.logdet.expansions.control import Controlled
from resflow_bench.logdet.expansions.expansion import Expanded, Expansion, Incremental
from resflow_bench.logdet.expansions.precision import tf32
from resflow_bench.logdet.expansions.taylor import Taylor

__all__ = [
    "Arnoldi",
    "Chebyshev",
    "Compiled",
    "Controlled",
    "Expanded",
    "Expansion",
    "Incremental",
    "SpectralInterval",
    "Taylor",
    "measured_interval",
    "tf32",
]
