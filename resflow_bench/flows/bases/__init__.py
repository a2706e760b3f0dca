"""Base densities of the latents z of a flow."""

from resflow_bench.flows.bases.base import BaseDensity, StandardNormal, Tempered
from resflow_bench.flows.bases.learnt import DiagonalNormal, NormalMixture

__all__ = ["BaseDensity", "DiagonalNormal", "NormalMixture", "StandardNormal", "Tempered"]
