"""Flows: bijections in a chain, a base density, likelihood, sampling and a certified inverse."""

from resflow_bench.flows.actnorm import ActNorm
from resflow_bench.flows.flow import Bijection, ResidualFlow
from resflow_bench.flows.residual import Inversion, ResidualBlock

__all__ = ["ActNorm", "Bijection", "Inversion", "ResidualBlock", "ResidualFlow"]
